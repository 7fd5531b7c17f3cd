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
  bernoulli,     // mu: logits, or log-odds; no theta
  poisson,       // mu: logarithms of rates; no theta
  student,       // theta: log-scales; the parameter: degrees of freedom
  huber,         // the parameter: the distance from which the energy grows linearly; no theta
  categorical,   // nothing to learn: z is a distribution, and mu are its logits
  expression,    // a program of one's own: expression.h; theta: likewise or [B, n], or none
};
inline constexpr int64_t kLaws = 10;

// Whether the energy is a sum over elements.
inline bool is_elementwise(Law law) {
  return law != Law::none && law != Law::full_gaussian && law != Law::categorical;
}

// Whether what an element pushes with depends on all of its sample's predictions.
inline bool is_rowwise(Law law) {
  return law == Law::categorical;
}

// Whether theta may be one number per element, t, which the formulas see as weight * exp(-t).
inline bool has_scale(Law law) {
  return law == Law::gaussian || law == Law::laplace || law == Law::student;
}

// Whether the energy is one of z - mu, which is 0 and least at 0: it pulls and pushes alike.
inline bool is_of_distance(Law law) {
  return law != Law::none && law != Law::bernoulli && law != Law::poisson &&
         law != Law::categorical && law != Law::expression;
}

// Whether what an element pushes with is another than what it pulls with.
inline bool pushes_apart(Law law) {
  return is_elementwise(law) && !is_of_distance(law);
}

// Whether a number that is greater than 0 belongs to the law.
inline bool has_parameter(Law law) {
  return law == Law::student || law == Law::huber;
}

// Whether no deviation is below 0, z being what the law is for.
inline bool has_floor(Law law, bool free) {
  return law != Law::poisson && law != Law::expression && !(free && law == Law::bernoulli);
}

// Whether the energy of a clamped state is convex in its prediction.
inline bool is_convex(Law law) {
  return law != Law::student && law != Law::expression;
}

// What the energy of weight 1 has of theta beside what depends on z and mu: this times theta.
inline double normalizer(Law law) {
  return law == Law::expression ? 0 : law == Law::laplace || law == Law::student ? 1 : 0.5;
}

} // namespace pyromancy
