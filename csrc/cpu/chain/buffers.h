#pragma once

// What a tile keeps of each node, and where.

#include "products.h"
#include "stages.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// What products may multiply a matrix with.
enum class Input : int { activation, delta, error, residual };
constexpr int kInputs = 4;

// What a tile keeps for a node, each [rows(n), width vectors]; null where the chain never needs it.
template <class P>
struct Buffers {
  using C = typename P::Number;

  C* z;
  C* base;     // the first z, where predictions are fixed
  C* a;        // before(z), or before(base); the same itself where that is the identity
  C* through;  // other activations, one behind the other
  C* next;     // the activations to come, where the update still reads a
  C* mu;       // a prediction that does not change
  C* rest;     // what is added to products, of one that does
  C* skipped;  // what errors of several skips come to on their way back
  C* residual; // z - mu, for a full precision
  C* error;    // what the law pulls with: P (z - mu) for a Gaussian
  C* delta;    // after' times what it pushes with: where both are the pull, the same as that
  C* slope;    // after', where a full precision comes between
  C* energy;   // the law's deviation, to be recorded
  C* moment;   // what that grows by with theta, to be learned from
  C* constant_feedback; // W^T P (z' - b) from the clamped node that this one predicts
  C* velocity;
  C* v; // what a stepper moves, where the gradient is g: z itself, or the error z - mu
  C* g;
  C* of_error;                          // the gradient for the error, where states move
  C* s;                                 // what the motions of the method leave
  C* h;                                 // and what else it keeps, or draws
  C* x;                                 // the point before, and
  C* pairs;                             // ways to points, and then changes of g on these
  C* led;                               // that in standard deviations of a full covariance
  C* theta;                             // of a law of one's own
  C* known;                             // 1 where an element holds still
  C* scale;                             // that gradients of samples are brought down by: one row
  typename P::Operand* paired[kInputs]; // what `round` makes, where products take pairs
  typename P::Operand* paired_through;
  int64_t size; // of one, in elements

  const C* source() const { // of predictions
    return base ? base : z;
  }
  const C* input(Input of) const {
    return of == Input::activation ? a
           : of == Input::delta    ? delta
           : of == Input::error    ? error
                                   : residual;
  }
  // before(z), or another activation.
  C* activation(int64_t k) const {
    return k < 0 ? a : through + k * size;
  }
  const typename P::Operand* operand(Input of, int64_t k) const {
    if constexpr (P::kColumns == 1)
      return k < 0 ? input(of) : activation(k);
    else
      return k < 0 ? paired[static_cast<int>(of)] : paired_through + k * size;
  }
};

// Hands out the buffers of every node from `base` on and returns how many elements they take.
template <class Layout>
int64_t lay_out(const ChainArgs& args, typename Layout::C* base,
                Buffers<typename Layout::Products>* buffers) {
  using C = typename Layout::C;
  using O = typename Layout::O;
  static_assert(sizeof(C) == sizeof(O));
  int64_t taken = 0;
  for (int64_t l = 0; l < args.nodes; ++l) {
    const ChainNode& node = args.node[l];
    const auto take = [&](bool wanted, int64_t n = 0) -> C* {
      if (!wanted)
        return nullptr;
      C* p = base + taken;
      taken += Layout::rows(n ? n : node.n) * Layout::width * kLanes<C>;
      return p;
    };
    const bool multiplied = node.away.products.count;
    const auto take_all = [&](int64_t count) {
      C* const first = count > 0 ? take(true) : nullptr;
      for (int64_t k = 1; k < count; ++k)
        take(true);
      return first;
    };
    const bool gram = gram_among(args, node.out);
    const bool varies = node.predicted && node.prediction_varies;
    const bool fed_back = node.predicted && node.feeds_back;
    const bool bent = node.predicted && is_bent(args, node);
    const bool full = node.predicted && node.full_precision;
    const bool every =
        node.predicted && (args.energies || args.learn != Learn::never || args.has_stepper);
    const bool stepped = node.free && args.has_stepper;
    const bool rises = stepped && args.method.errors;
    Buffers<typename Layout::Products> b{};
    b.z = take(true);
    b.base = take(node.free && args.fixed);
    b.a = multiplied && (gram || node.before.kind != Activation::identity) ? take(true) : b.z;
    if (b.a == b.z && b.base)
      b.a = b.base;
    b.size = Layout::rows(node.n) * Layout::width * kLanes<C>;
    b.through = take_all(node.throughs);
    b.next = take(gram);
    b.mu = take(node.predicted && !varies);
    b.rest = take(node.predicted && has_rest(node));
    b.skipped = take(node.free && (node.away.skips.count > 1 || node.throughs));
    b.residual = take(full);
    const bool expressed = node.predicted && node.law == Law::expression;
    b.error = take(fed_back || full || every || expressed);
    const bool leads = stepped && bounds_states(args);
    b.delta = bent || leads || (b.error && pushes_apart(node.law)) ? take(true) : b.error;
    b.slope = take(bent && (full || rises || leads));
    b.of_error = take(leads);
    b.led = take(stepped && node.measure && !node.whitened);
    // of errors that move, a Gaussian's energy follows at once
    const bool at_once = rises && (node.law == Law::gaussian || node.whitened);
    b.energy = take(node.predicted &&
                    (args.energies || (args.has_stepper && args.method.looks && !at_once)));
    b.moment = take(node.moment != nullptr);
    b.constant_feedback = take(gram);
    b.velocity = take(node.velocity && !args.has_stepper);
    b.v = rises ? take(true) : b.z;
    b.g = take(stepped);
    b.s = take(stepped);
    b.h = take(stepped && (args.method.keeps || args.method.draws));
    b.x = take(stepped && args.method.searches);
    b.pairs = take_all(stepped ? 2 * args.method.pairs : 0);
    b.theta = take(node.theta != nullptr);
    b.known = take(node.free && node.known);
    b.scale = take(stepped && args.max_norm > 0, 1);
    if constexpr (Layout::Products::kColumns > 1) {
      const bool by_gram = gram_among(args, node.in);
      const bool wanted[kInputs] = {multiplied, fed_back && !by_gram, by_gram, full};
      for (int i = 0; i < kInputs; ++i)
        b.paired[i] = reinterpret_cast<O*>(take(wanted[i]));
      b.paired_through = reinterpret_cast<O*>(take_all(node.throughs));
    }
    if (buffers)
      buffers[l] = b;
  }
  return taken;
}

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
