#pragma once

// How a parameter moves along its gradient, and when: what the host needs to know of every rule.
// What a rule does is in a header of its own, and a row of rules.h.

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define PYROMANCY_ANYWHERE __host__ __device__
#else
#define PYROMANCY_ANYWHERE
#endif

namespace pyromancy {

enum class RuleKind : int64_t {
  gradient, // the gradient itself, into a tensor
  sgd,      // as torch.optim.SGD; slots: velocity
  adam,     // as torch.optim.Adam and AdamW; slots: step, mean, mean square, greatest mean square
  rmsprop,  // as torch.optim.RMSprop; slots: step, mean square, velocity, mean
};
inline constexpr int64_t kRules = 4, kSlots = 4;

struct Rule {
  RuleKind kind;
  bool maximize, nesterov;
  bool decoupled; // weight decay beside the gradient, as AdamW has it
  bool fresh;     // sgd: the first gradient starts the velocity
  // sgd: momentum, dampening; adam: betas, epsilon; rmsprop: alpha, momentum, epsilon
  double lr, weight_decay, first, second, epsilon;
};

// When the errors that weights learn from are those of the states.
enum class Learn : int {
  never,
  after,  // after the last step
  before, // before the last step
};

// Whether slot 0 is one number, of the steps so far.
inline bool counts_steps(RuleKind kind) {
  return kind == RuleKind::adam || kind == RuleKind::rmsprop;
}

// The slots that must be there, from the first on.
inline int64_t slots_needed(const Rule& rule) {
  switch (rule.kind) {
  case RuleKind::sgd:
    return rule.first != 0;
  case RuleKind::adam:
    return 3;
  case RuleKind::rmsprop:
    return rule.second != 0 ? 3 : 2;
  default:
    return 0;
  }
}

// A rule as it applies at a step, the first being 1: bias corrections are in the factors.
struct LearnStep {
  Rule rule;
  double step_size = rule.lr;
  double root_factor = 1;

  PYROMANCY_ANYWHERE LearnStep(const Rule& r, double step) : rule(r) {
    if (rule.kind != RuleKind::adam)
      return;
    step_size /= 1 - std::pow(rule.first, step);
    root_factor = 1 / std::sqrt(1 - std::pow(rule.second, step));
  }
};

} // namespace pyromancy
