#pragma once

// What makes a node's energy of its state z and prediction mu: what the host needs to know of every
// law. Its formulas are in a header of its own, and a row of laws.h.

#include <cstdint>

namespace pyromancy {

enum class Law : int64_t {
  none,          // no energy
  gaussian,      // theta: log-variances [n], [1] or [], or nothing for 0
  full_gaussian, // theta: the precision, a matrix [n, n]
  laplace,       // theta: log-scales, likewise

  categorical = 8, // nothing to learn: z is a distribution, and mu are its logits
};
inline constexpr int64_t kLaws = 9;

// Whether theta is one number per element, t, which the formulas see as weight * exp(-t).
inline bool is_elementwise(Law law) {
  return law != Law::none && law != Law::full_gaussian && law != Law::categorical;
}

// Whether what an element pushes with depends on all of its sample's predictions.
inline bool is_rowwise(Law law) {
  return law == Law::categorical;
}

// What the energy of weight 1 has of theta beside what depends on z and mu: this times theta.
inline double normalizer(Law law) {
  return law == Law::laplace ? 1 : 0.5;
}

} // namespace pyromancy
