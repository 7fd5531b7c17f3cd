#pragma once

#include "../activations.h"
#include "../laws/expression.h"
#include "../laws/law.h"
#include "../methods/methods.h"
#include "../methods/update_order.h"
#include "../rules/rule.h"
#include "isa.h"

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
  Sum away;        // of those away from it, with products of one activation alone
  const Through* through; // which the others take, as many
  int64_t throughs;
  Nonlinearity before, after; // of the products away from it, and of its prediction
  const void* bias;           // [n], padded with zeros; null where no edge leads to it
  Numbers descending;         // nodes whose update needs no later error than this one's
  bool free, predicted;
  int64_t ordinal;        // among the free ones
  bool prediction_varies; // from step to step
  bool feeds_back;        // its error, into the node that predicts it, which moves
  bool swept;             // starts at its prediction
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

// A piece of the work on a tile. Pieces of one tile follow one another; within a piece rows may be
// split at will, as different tiles may.
enum class Work : int {
  predict_once,      // the prediction of a node whose sources are clamped, or what of it these make
  sweep,             // the prediction of a node that starts there
  constant_feedback, // what of W^T e no E-step changes, where W^T P W serves
  find_error,        // the error of a node
  apply_precision,   // that error by a full precision
  normalize,         // that error where `find_error` has left logits, of a law of rows
  gather,            // what is fed back to a node through another activation than that of most
  descend,          // the update of a node, whose rows the errors that it needs have been found for
  swap_activations, // puts the activations to come in the place of those that are over
  record,           // energies before the step
  // of a stepper:
  draw_noise,              // draws the noise of a node
  move,                    // a node's state, as all samples have been judged, or its whitened error
  move_and_predict,        // a node's error, likewise, and its state by the prediction
  backpropagate,           // the gradient for what moves of a node
  backpropagate_to_errors, // the gradient for the error of a node, where states move
  whiten,                  // the error of a state
  spread,                  // the state, from its prediction, by the whitened error
  measure, // the gradient for that, of what is fed back, or of the gradient for the error
  judge,
  search,            // for the length of a step, given the energies where the last one has led
  accept,            // the last point, or not
  keep_for_learning, // what learning wants
};

struct Stage {
  Work work;
  int64_t node, step;
  bool learning = false; // that weights learn from the error
  int64_t through = 0;
};

// The edge whose feedback goes by a gram, if one leads to a node, or away from it; else null.
inline const ChainEdge* gram_among(const ChainArgs& args, Numbers edges) {
  return edges.count == 1 && args.edge[*edges.first].gram ? args.edge + *edges.first : nullptr;
}

// Whether a part of a prediction is kept that products are added to.
inline bool has_rest(const ChainNode& node) {
  return node.resting.products.count || node.resting.skips.count || (node.in.count && node.prior);
}

// stage(s) for something that takes what is fed back to node l.
template <class F>
void stages_of_feedback(const ChainArgs& args, Work work, int64_t l, int64_t t, F stage) {
  for (int64_t k = 0; k < args.node[l].throughs; ++k)
    stage(Stage{Work::gather, l, t, false, k});
  stage(Stage{work, l, t});
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

// stage(s) for the error of node l: for a step, for one whose energies are recorded, or to learn.
template <class F>
void stages_of_error(const ChainArgs& args, int64_t l, int64_t t, bool learning, F stage) {
  const ChainNode& node = args.node[l];
  if (!node.predicted || t < node.first_error)
    return;
  const bool every = args.energies || learning;
  const bool gram = gram_among(args, node.in);
  if (node.feeds_back ? every || !gram : every || node.full_precision)
    stage(Stage{Work::find_error, l, t, learning});
  if (node.full_precision)
    stage(Stage{Work::apply_precision, l, t});
  if (is_rowwise(node.law) && (node.feeds_back || every))
    stage(Stage{Work::normalize, l, t});
}

// Steps count updates, of which one has two where every other free node descends first.
inline int64_t updates_of_a_step(const ChainArgs& args) {
  return args.update_order == UpdateOrder::alternate ? 2 : 1;
}

// Whether the error that weights learn from is at hand once a stepper has moved it.
inline bool errs_by_moving(const ChainArgs& args, const ChainNode& node) {
  return args.has_stepper && args.method.errors && node.free && node.predicted &&
         !node.full_precision && (node.prediction_varies || !is_bent(args, node));
}

// Whether the errors of node l have to be found, and the stages for that, at a sweep of a stepper.
template <class F>
void stages_of_looking(const ChainArgs& args, int64_t l, int64_t t, F stage) {
  if (args.node[l].predicted && !(args.method.errors && args.node[l].free))
    stage(Stage{Work::find_error, l, t});
  if (args.node[l].predicted && args.node[l].full_precision && !args.node[l].whitened)
    stage(Stage{Work::apply_precision, l, t});
  if (is_rowwise(args.node[l].law))
    stage(Stage{Work::normalize, l, t});
}

// Whether a motion leads to where sweep t looks.
inline bool follows(const ChainArgs& args, int64_t t) {
  return t > 0 || (t == 0 && args.resume && args.method.pends);
}

// Whether a node moves by what sweep t of a stepper finds.
inline bool is_moved(const ChainArgs& args, const ChainNode& node, int64_t t) {
  return args.method.kind != StepperKind::sequential || node.ordinal % 2 == t % 2;
}

// stage(s) for the way to where sweep t looks, and for the errors there.
template <class F>
void stages_of_rising(const ChainArgs& args, int64_t t, bool errors, F stage) {
  const bool learning = t == args.steps * args.method.sweeps && args.learn == Learn::after;
  for (int64_t l = 0; l < args.nodes; ++l) {
    if (args.node[l].free && args.method.draws && t > 0)
      stage(Stage{Work::draw_noise, l, t - 1});
    const bool whitened = args.node[l].whitened, follows = pyromancy::follows(args, t);
    if (whitened && follows)
      stage(Stage{Work::move, l, t});
    if (args.node[l].free && (t <= 0 || is_moved(args, args.node[l], t - 1)))
      stage(Stage{args.method.errors ? Work::move_and_predict : Work::move, l, t, learning});
    if (whitened)
      stage(Stage{follows ? Work::spread : Work::whiten, l, t});
    if (args.method.errors && errors)
      stages_of_looking(args, l, t, stage);
  }
  for (int64_t l = 0; l < args.nodes && !args.method.errors && errors; ++l)
    stages_of_looking(args, l, t, stage);
}

// Whether sweep t of a method that moves states has another one downwards, for the gradients of
// errors, which bound what is left to be gained.
inline bool bounds_states(const ChainArgs& args) {
  return args.has_stepper && !args.method.errors && args.method.tol > 0 && args.method.bounds;
}
inline bool leads(const ChainArgs& args, int64_t t) {
  return bounds_states(args) && t % (kRarely * args.method.sweeps) == 0;
}

// stage(s) for sweeps from t on, until there are no more, or done(t) tells before sweep t that all
// samples are at their end; returns that t. A step of the method may take two sweeps; those
// recorded are its own. One that searches looks at points, until settled() tells that all samples
// are at one to go on from.
template <class F, class Done, class Settled>
int64_t stages_of_sweeping(const ChainArgs& args, int64_t t, F stage, Done done, Settled settled) {
  for (; t < args.steps * args.method.sweeps && !done(t); ++t) {
    if (t == 0 || !args.method.searches)
      stages_of_rising(args, t, true, stage);
    if (args.energies && t % args.method.sweeps == 0)
      stage(Stage{Work::record, 0, t / args.method.sweeps});
    const auto measure = [&](int64_t l) {
      if (args.node[l].measure)
        stage(Stage{Work::measure, l, t});
    };
    const bool first = t % args.method.sweeps == 0; // which tells of the point
    for (int64_t l = args.nodes - 1; l >= 0; --l)
      if (args.node[l].free && (first || is_moved(args, args.node[l], t))) {
        stages_of_feedback(args, Work::backpropagate, l, t, stage);
        if (args.method.errors)
          measure(l);
      }
    for (int64_t l = args.nodes - 1; l >= 0 && leads(args, t); --l)
      if (args.node[l].free) {
        stages_of_feedback(args, Work::backpropagate_to_errors, l, t, stage);
        measure(l);
      }
    stage(Stage{Work::judge, 0, t});
    while (args.method.searches && !settled()) {
      stages_of_rising(args, t + 1, true, stage);
      stage(Stage{Work::search, 0, t});
    }
  }
  return t;
}

// stage(s) for a stepper.
template <class F, class Done, class Settled>
void stages_of_sweeps(const ChainArgs& args, F stage, Done done, Settled settled) {
  const int64_t sweeps = args.steps * args.method.sweeps;
  if (args.resume && args.method.pends && args.method.errors)
    stages_of_rising(args, -1, false, stage); // for the errors that the motion begins with
  int64_t t = stages_of_sweeping(args, 0, stage, done, settled);
  const bool tries = args.method.tries && !done(sweeps);
  // a search has been there
  if (!args.method.searches || t < sweeps || args.learn == Learn::after)
    stages_of_rising(args, sweeps, tries || (args.energies && t < sweeps), stage);
  for (; t < sweeps; ++t) // all samples rest
    if (args.energies && t % args.method.sweeps == 0)
      stage(Stage{Work::record, 0, t / args.method.sweeps});
  if (!tries)
    return;
  stage(Stage{Work::accept, 0, sweeps});
  if (!done(sweeps))
    stages_of_rising(args, sweeps, false, stage);
}

// Whether a free node moves at a step.
inline bool is_updated(const ChainArgs& args, const ChainNode& node, int64_t t) {
  return args.update_order == UpdateOrder::together ? true
         : args.update_order == UpdateOrder::alternate
             ? node.ordinal % 2 == t % 2
             : node.ordinal == args.free - 1 - (args.first + t);
}

// stage(s) for plain descent.
template <class F>
void stages_of_steps(const ChainArgs& args, F stage) {
  const int64_t each = updates_of_a_step(args), steps = args.steps * each;
  const auto moves = [&](int64_t l, int64_t t) {
    return args.node[l].free && t >= args.node[l].first_move && is_updated(args, args.node[l], t);
  };
  // Whether the error of a node moves something, where states take turns.
  const auto is_used = [&](int64_t l, int64_t t) {
    bool used = args.update_order == UpdateOrder::together || args.energies || moves(l, t);
    for (const int64_t e : args.node[l].in)
      used |= moves(args.edge[e].source, t);
    return used;
  };
  const auto descend = [&](int64_t l, int64_t t) {
    if (!moves(l, t))
      return;
    stages_of_feedback(args, Work::descend, l, t, stage);
    if (gram_among(args, args.node[l].out))
      stage(Stage{Work::swap_activations, l, t});
  };
  for (int64_t t = 0; t < steps; ++t) {
    const bool learning = args.learn == Learn::before && t + 1 == steps;
    // A node's update follows the last of the errors that it needs, after which nobody looks at its
    // state, while that is in the cache; unless the errors have to wait to be learned from.
    for (int64_t l = 0; l < args.nodes; ++l) {
      if (is_used(l, t))
        stages_of_error(args, l, t, learning, stage);
      if (learning)
        continue;
      for (const int64_t k : args.node[l].descending)
        descend(k, t);
    }
    if (args.energies && t % each == 0)
      stage(Stage{Work::record, 0, t / each});
    if (!learning)
      continue;
    stage(Stage{Work::keep_for_learning, 0, t}); // which overwrites residuals
    for (int64_t l = 0; l < args.nodes; ++l)
      descend(l, t);
  }
}

// stage(s) for everything between loading the states and storing them, in order. done(t) tells
// whether a stepper has come to its end with all samples, before sweep t, and settled()
// whether one that searches has found the lengths of their steps.
template <class F, class Done, class Settled>
void stages(const ChainArgs& args, F stage, Done done, Settled settled) {
  for (int64_t l = 0; l < args.nodes; ++l) {
    const ChainNode& node = args.node[l];
    if (!node.predicted || !node.in.count)
      continue;
    if (!node.prediction_varies || node.resting.products.count || node.resting.skips.count)
      stage(Stage{Work::predict_once, l, 0});
    if (node.prediction_varies && node.swept && !(args.has_stepper && args.method.errors))
      stage(Stage{Work::sweep, l, 0});
    if (const ChainEdge* edge = gram_among(args, node.in))
      stage(Stage{Work::constant_feedback, edge->source, 0});
  }
  if (args.has_stepper)
    stages_of_sweeps(args, stage, done, settled);
  else
    stages_of_steps(args, stage);
  if (args.learn == Learn::after) {
    for (int64_t l = 0; l < args.nodes; ++l)
      if (!errs_by_moving(args, args.node[l]))
        stages_of_error(args, l, args.steps * updates_of_a_step(args), true, stage);
    stage(Stage{Work::keep_for_learning, 0, args.steps});
  }
}

// Rows [begin, end) of a matrix or of what a tile keeps for a node.
struct Rows {
  int64_t begin, end;
};

// How a tile keeps its samples. Wide tiles have a sample per lane; thin ones a neuron per lane.
// No sample's result depends on the choice, in any bit.
enum class TileKind : int { wide2, wide1, thin4, thin1 };
inline constexpr int kTileKinds = 4;

struct ChainKernels {
  int lanes;               // of a vector; biases and precisions are padded to a multiple of it
  int columns_at_once;     // of a matrix, that one multiply-add takes
  int samples[kTileKinds]; // of a tile
  int block[kTileKinds];   // rows of a stage are split at multiples of it
  int64_t panel_rows;      // a matrix may be packed in pieces that begin at multiples of it
  // Elements that a matrix with this many rows and columns takes, packed.
  int64_t (*packed_size)(TileKind kind, int64_t rows, int64_t depth);
  int64_t (*packed_stride)(TileKind kind, int64_t rows);
  // A matrix that is not worth packing where each tile or step that reads it is one of the passes,
  // or null. Element (i, k) is w[i * row_stride + k * depth_stride].
  PackedMatrix (*as_it_is)(TileKind kind, const void* w, int64_t rows, int64_t row_stride,
                           int64_t depth_stride, int64_t passes);
  void (*pack)(TileKind kind, const void* w, int64_t rows, int64_t depth, int64_t row_stride,
               int64_t depth_stride, Rows wanted, void* packed);
  // Bytes that a tile needs, and that a thread needs which works on so many at a time.
  int64_t (*workspace_size)(const ChainArgs& args, TileKind kind);
  int64_t (*partial_size)(TileKind kind, int64_t tiles);
  // All of the work on one tile. `partial` is a thread's.
  void (*run)(const ChainArgs& args, TileKind kind, void* workspace, void* partial, int64_t tile);
  // The same in pieces: first and last, for one tile each; in between stages, for some rows of
  // consecutive tiles, whose workspaces lie one behind the other.
  void (*begin)(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile);
  void (*stage)(const ChainArgs& args, TileKind kind, Stage stage, Rows wanted, void* workspaces,
                void* partial, int64_t tile, int64_t tiles);
  void (*end)(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile);
  // Whether a stepper has come to its end with all samples of a tile.
  bool (*done)(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile);
  // Whether one that searches has found the length of the step of each.
  bool (*settled)(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile);
  int64_t (*rows)(const ChainArgs& args, TileKind kind, Stage stage);
  int64_t columns; // of b that `outer` takes at a time
  int64_t panel;   // elements of its scratch memory
  // out[m, end - begin] = scale a^T f(b) for columns [begin, end) of b [batch, n], contiguous; a^T
  // [m, batch] packed for wide tiles. Rows of `out` are `stride` apart.
  void (*outer)(const void* a, const void* b, Nonlinearity f, int64_t batch, int64_t m, int64_t n,
                double scale, int64_t begin, int64_t end, void* panel, void* out, int64_t stride);
  // out[i] = scale * the norm of a matrix's row i
  void (*row_norms)(const void* w, int64_t rows, int64_t depth, int64_t row_stride,
                    int64_t depth_stride, double scale, void* out);
  // out[n] = scale * the sum of the rows of a [batch, n]
  void (*sum_rows)(const void* a, int64_t batch, int64_t n, double scale, void* out);
  // Moves `rows` runs of `columns` elements of a parameter, `stride` apart, by their gradients
  // [rows, columns], as a rule does; the slots lie as the parameter does.
  void (*learn)(const LearnStep& step, int64_t rows, int64_t columns, const void* gradient,
                void* parameter, void* const* slots, int64_t stride);
};

// float32 and float64 only
PYROMANCY_DECLARE_KERNELS(ChainKernels, chain_kernels)

// Of float32, with products of numbers rounded to bfloat16; `multiplies_bfloat16` tells whether
// this processor has it.
#if PYROMANCY_X86_ISAS
namespace avx512_bf16 {
extern const ChainKernels bfloat16_chain_kernels;
}
#endif

} // namespace pyromancy
