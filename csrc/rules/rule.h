#pragma once

// How a parameter moves along its gradient.

#include <cstdint>

namespace pyromancy {

enum class RuleKind : int64_t {
  gradient, // the gradient itself, into a tensor
  sgd,      // as torch.optim.SGD; slots: velocity
  adam,     // as torch.optim.Adam and AdamW; slots: step, mean, mean square, greatest mean square
};
inline constexpr int64_t kRules = 3, kSlots = 4;

struct Rule {
  RuleKind kind;
  bool maximize, nesterov;
  bool decoupled; // weight decay beside the gradient, as AdamW has it
  bool fresh;     // sgd: the first gradient starts the velocity
  double lr, weight_decay, first, second, epsilon; // sgd: momentum, dampening; adam: betas, epsilon
};

// A rule as it applies at this step: bias corrections are in the factors.
struct LearnStep {
  const Rule& rule;
  double step_size;          // adam: lr / (1 - beta1^t)
  double root_of_correction; // adam: sqrt(1 - beta2^t)
};

} // namespace pyromancy
