#pragma once

// A chain in the terms of the kernels. Functions are of no linker's: every instruction set has its
// own, and one would be taken for all.

#include "../../activations.h"
#include "../../laws/expression.h"
#include "../../laws/law.h"
#include "../../methods/methods.h"
#include "../../methods/update_order.h"
#include "../../rules/rule.h"

namespace pyromancy {

// A matrix in the form that a tile's products read: for thin tiles columns `stride` apart, or rows
// where it says so, for wide ones contiguous rows `stride` apart, or panels, where that is 0.
// Panels may lie beyond the second-level cache, `far`.
struct PackedMatrix {
  const void* data = nullptr;
  int64_t stride = 0;
  bool far = false;
  bool by_rows = false; // for thin tiles, which turn them
  explicit operator bool() const {
    return data != nullptr;
  }
};

// Of edges or of nodes.
struct Numbers {
  const int64_t* first = nullptr;
  int64_t count = 0;
  const int64_t* begin() const {
    return first;
  }
  const int64_t* end() const {
    return first + count;
  }
};

// Edges whose parts make up a sum: those that have a matrix, and those that have a skip.
struct Sum {
  Numbers products, skips;

  bool any() const {
    return products.count || skips.count;
  }
};

// Products away from a node that take another activation of it than the others do.
struct Through {
  Nonlinearity before;
  Numbers products;
};

// Nodes joined by edges:
//   mu[l] = after(sum of W before(z[source]) + skip z[source] over the edges to it + b),
//   e[l] = what the law pulls z[l] with,   d[l] = after' times what it pushes mu[l] with,
// and E-steps z[l] -= lr (e[l] - before'(z[l]) sum of W^T d[target] - sum of skip d[target]), over
// the edges away from it, on the free nodes, all at once; a Gaussian pulls and pushes with
// P (z[l] - mu[l]).
struct ChainNode {
  int64_t n;
  Numbers in, out; // the edges that lead to it and away from it
  Sum moving;      // of those to it what is found again with a prediction
  Sum resting;     // and what does not change beside it, nor does what is given of the prediction
  // Of a node that starts by some of the edges to it: those of `resting`, the others of `resting`,
  // and what else it starts by; and the biases of those that it starts by, as `bias`.
  bool starts_by_some;
  Sum started, unstarted, starting;
  const void* start_bias;
  Sum away;               // of those away from it, with products of one activation alone
  const Through* through; // which the others take, as many
  int64_t throughs;
  Nonlinearity before, after; // of the products away from it, and of its prediction
  const void* bias;           // [n], padded with zeros; null where no edge leads to it
  Numbers descending;         // nodes whose update needs no later error than this one's
  bool free, predicted;
  int64_t ordinal;        // among the free ones
  bool prediction_varies; // from step to step
  bool feeds_back;        // its error, into the node that predicts it, which moves
  bool swept;             // starts at its prediction, or what some edges make of it
  // [n], padded: where a state may be its prediction but for rounding, that rounding over the norm
  // of before(z); such elements are made to be it. Or null.
  const void* rounding;
  // Of nodes that start at their prediction the first step at which the error can be other than
  // zero, and the first at which the state can move. What comes before would compute zeros.
  int64_t first_error, first_move;
  void* state; // [B, n], contiguous; overwritten where free
  // [B, n] of free nodes, or null: of momentum; or of a stepper that goes on, s, and h; or of fixed
  // predictions, the first states. Of lbfgs x, and h and pairs [1 + 2 pairs, B, n].
  void *velocity, *kept;
  Law law;
  double law_parameter, weight; // of the law and of its energy
  const Expression* expression; // of a law that is one
  // weight * exp(-theta) of the law, for a Gaussian the diagonal of P: [n], padded with zeros; null
  // is 1.
  const void* rate;
  const void* theta; // of an expression that has one, rows theta_stride apart; or null
  int64_t theta_stride;
  PackedMatrix full_precision; // P [n, n], or null
  // Of a free one L^T, L and L^-1, with L L^T the inverse of P, where a stepper measures by it: as
  // its error moves as L^-1 (z - mu), whitened, or else the gradient for it bounds what is left.
  PackedMatrix measure, spread, whiten;
  bool whitened;
  // One for every sample, padded to whole tiles, which P is multiplied by; or null.
  const void* sample_weights;
  const void*
      prior; // constant prediction, or what is added to it, rows prior_stride apart; or null
  int64_t prior_stride;

  // What a step does of it beside; constrained where it does more than by its rate.
  double relative_rate, shrink, towards, low, high;
  bool constrained;
  const void* known; // 1 where an element holds still, else 0, rows known_stride apart; or null
  int64_t known_stride;

  // What learning wants of this node, each [B, n], or null.
  void* delta;  // after' push: minus the energy's gradient for W before(z) + b + skip z
  void* moment; // what the law's deviation grows by with theta
  void* source; // z itself, where it moves on from the same errors
};

struct ChainEdge {
  int64_t source, target;
  PackedMatrix weight;     // W, or null
  PackedMatrix transposed; // W^T; null where its source is clamped
  PackedMatrix gram; // W^T P W, for a clamped target: its feedback is constant_feedback - gram f(z)
  double skip;
  int64_t through = -1;      // which activation of the source it takes; -1 is the first
  void* activated = nullptr; // where learning wants that, [B, n]; or null
};

struct ChainArgs {
  int64_t batch, nodes, free; // nodes that move
  ChainNode* node;
  ChainEdge* edge;
  int64_t steps;
  double lr, momentum, dampening;
  bool nesterov;
  bool narrows;             // tiles, where half of their samples are at their end
  UpdateOrder update_order; // of the free nodes
  int64_t first;            // steps before, by which the order of updates goes on
  bool fixed;               // predictions and their derivatives stay those of the first states
  bool resume;              // velocities hold those of steps before, and so does what goes on
  bool moves;               // whether states are stored
  bool has_stepper;         // steps are those of this method instead
  Stepper method;
  bool constrained;      // a state
  double max_norm;       // of a node's gradient, of a sample; 0: none
  const double* factors; // of the rate in every step, or null
  Learn learn;
  void* energies;   // [steps, nodes, B] before each step, without log-determinants; or null
  int* diverged;    // set to 1 where a state that is stored is NaN or infinite
  double* progress; // [B, kProgress], of a method that goes on; or null
  void* outcome;    // [B, 2] of that method: the steps taken, and whether it stopped; or null
};

namespace {

// The edge whose feedback goes by a gram, if one leads to a node, or away from it; else null.
inline const ChainEdge* gram_among(const ChainArgs& args, Numbers edges) {
  return edges.count == 1 && args.edge[*edges.first].gram ? args.edge + *edges.first : nullptr;
}

// Whether a part of a prediction is kept that products are added to.
inline bool has_rest(const ChainNode& node) {
  return node.resting.any() || (node.in.count && node.prior);
}

// Whether an error's derivative has to go through an activation after the product.
inline bool is_bent(const ChainArgs& args, const ChainNode& node) {
  return node.in.count && node.after.kind != Activation::identity &&
         (node.feeds_back || args.learn != Learn::never);
}

// Whether that error comes from a product, and not from a prediction that is kept.
inline bool errs_by_product(const ChainArgs& args, const ChainNode& node, bool learning) {
  return node.prediction_varies || ((learning || args.fixed) && is_bent(args, node));
}

// Whether the error that weights learn from is at hand once a stepper has moved it.
inline bool errs_by_moving(const ChainArgs& args, const ChainNode& node) {
  return args.has_stepper && args.method.errors && node.free && node.predicted &&
         !node.full_precision && (node.prediction_varies || !is_bent(args, node));
}

} // namespace

} // namespace pyromancy
