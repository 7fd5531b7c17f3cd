#pragma once

// The pieces of the work on a tile, and their order.

#include "args.h"

namespace pyromancy {

// A piece of the work on a tile. Pieces of one tile follow one another; within a piece rows may be
// split at will, as different tiles may.
enum class Work : int {
  start_once,        // what clamped nodes make of where a node starts, and of its prediction
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

// Rows [begin, end) of a matrix or of what a tile keeps for a node.
struct Rows {
  int64_t begin, end;
};

namespace {

// stage(s) for something that takes what is fed back to node l.
template <class F>
void stages_of_feedback(const ChainArgs& args, Work work, int64_t l, int64_t t, F stage) {
  for (int64_t k = 0; k < args.node[l].throughs; ++k)
    stage(Stage{Work::gather, l, t, false, k});
  stage(Stage{work, l, t});
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
    const bool by_some = node.swept && node.starts_by_some;
    if (by_some && node.started.any())
      stage(Stage{Work::start_once, l, 0});
    if (by_some)
      stage(Stage{Work::sweep, l, 0});
    if (!node.prediction_varies || (by_some ? node.unstarted : node.resting).any())
      stage(Stage{Work::predict_once, l, 0});
    const bool by_errors = args.has_stepper && args.method.errors;
    if (node.prediction_varies && node.swept && !by_some && !by_errors)
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

} // namespace

} // namespace pyromancy
