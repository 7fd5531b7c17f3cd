#pragma once

#include "narrow.h"
#include "wide.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// Consecutive tiles, whose workspaces lie one behind the other.
template <class Layout>
struct Tiles {
  using C = typename Layout::C;
  using P = typename Layout::Products;
  static constexpr int64_t width = Layout::width;

  const ChainArgs& args;
  char* const workspaces;
  Vec<C>* const partial;
  const int64_t first, count;
  const int64_t taken = lay_out<Layout>(args, nullptr, nullptr) * int64_t(sizeof(C));

  static int64_t workspace_size(const ChainArgs& args) {
    return size(args, lay_out<Layout>(args, nullptr, nullptr) * int64_t(sizeof(C)));
  }

  static constexpr bool kNarrows = Layout::samples == 2 * Layout::w && width == 2;
  using Narrow = Wide<P, 1>; // what such tiles become

  static int64_t size(const ChainArgs& args, int64_t taken) {
    if constexpr (kNarrows)
      return own_size(args, taken) + (args.narrows ? Tiles<Narrow>::workspace_size(args) : 0);
    else
      return own_size(args, taken);
  }

  // Of the buffers, so many bytes, and what else there is of a tile: first what a method knows.
  static int64_t own_size(const ChainArgs& args, int64_t taken) {
    return round_up(taken + stepping_size(args) + args.nodes * int64_t(sizeof(Buffers<P>)), 64);
  }

  static int64_t stepping_size(const ChainArgs& args) {
    const int64_t curvatures = args.method.pairs * Layout::samples * int64_t(sizeof(double));
    return args.has_stepper ? int64_t(sizeof(Stepping<Layout>)) + curvatures : 0;
  }

  Tile<Layout> tile(int64_t t) const {
    char* const rest = workspaces + t * size(args, taken) + taken;
    return {args, reinterpret_cast<Buffers<P>*>(rest + stepping_size(args)),
            (first + t) * Layout::samples, reinterpret_cast<Stepping<Layout>*>(rest)};
  }

  static int64_t rows(const ChainArgs& args, Stage s) {
    const bool whole = s.work == Work::swap_activations || s.work == Work::record ||
                       s.work == Work::keep_for_learning || s.work == Work::judge ||
                       s.work == Work::accept || s.work == Work::normalize ||
                       s.work == Work::search;
    return whole ? 1 : Layout::rows(args.node[s.node].n);
  }

  void lay_out_all() const {
    for (int64_t t = 0; t < count; ++t)
      lay_out<Layout>(args, reinterpret_cast<C*>(workspaces + t * size(args, taken)),
                      tile(t).buffers);
  }

  void begin() const {
    lay_out_all();
    for (int64_t t = 0; t < count; ++t)
      tile(t).begin();
  }

  // What `norms` gives for what predicts node l, of one tile after the other: once for each.
  struct NormsOf {
    const int64_t l;
    int64_t first;
    typename Tile<Layout>::Norms found;

    const auto* in(const Tile<Layout>& tile) {
      if (first != tile.first)
        found = tile.norms(l), first = tile.first;
      return &found;
    }
  };

  // A matrix, and the node whose buffer it is multiplied with, or which activation of it.
  struct Operands {
    PackedMatrix matrix;
    int64_t source = -1, through = -1;
  };

  // Products that are added up: along edges, or back; or one, which may be of nothing.
  struct Products {
    Numbers edges;
    bool back = false;
    Operands only = {};

    int64_t count() const {
      return edges.count ? edges.count : 1;
    }
    Operands of(const ChainArgs& args, int64_t j) const {
      if (!edges.count)
        return only;
      const ChainEdge& edge = args.edge[edges.first[j]];
      return back ? Operands{edge.transposed, edge.target}
                  : Operands{edge.weight, edge.source, edge.through};
    }
  };

  void stage(Stage s, Rows wanted) const {
    const int64_t l = s.node;
    const ChainNode& node = args.node[l];
    const auto multiply = [&](const Products& products, Input x, auto f) {
      Layout::product(
          node.n, products.count(),
          [&](int64_t j) {
            const Operands of = products.of(args, j);
            return Factor{of.matrix, of.source < 0 ? 0 : args.node[of.source].n};
          },
          wanted, count, partial,
          [&](int64_t t, int64_t j) {
            const Operands of = products.of(args, j);
            return of.source < 0 ? nullptr : tile(t).buffers[of.source].operand(x, of.through);
          },
          [&](int64_t t, int64_t i, int64_t rows, Vec<C>* c) { f(tile(t), i, rows, c); });
    };
    const auto predict = [&](const Sum& sum, auto f) {
      const bool added =
          &sum == &node.moving ||
          (node.started.any() && (&sum == &node.unstarted || &sum == &node.starting));
      const bool rests = has_rest(node) && (added || node.prior);
      multiply({sum.products}, Input::activation, [&](auto it, int64_t i, int64_t n, auto* c) {
        it.skip(sum.skips, i, n, c);
        if (rests)
          it.add_rest(l, i, n, c);
        f(it, i, n, c);
      });
    };
    const bool fed = node.away.products.count;
    const Products fed_back{node.away.products, true};
    switch (s.work) {
    case Work::start_once:
      return predict(node.started, [&](auto it, auto... c) { it.predict_once(l, c..., nullptr); });
    case Work::predict_once: {
      NormsOf norms{l, -1, {}};
      const bool whole = !node.prediction_varies, settles = whole && node.rounding;
      const Sum& resting = node.swept && node.starts_by_some ? node.unstarted : node.resting;
      return predict(whole ? node.moving : resting, [&](auto it, auto... c) {
        it.predict_once(l, c..., settles ? norms.in(it) : nullptr);
      });
    }
    case Work::sweep:
      return predict(node.starts_by_some ? node.starting : node.moving,
                     [&](auto it, auto... c) { it.sweep(l, c...); });
    case Work::constant_feedback:
      return multiply(fed_back, Input::error,
                      [&](auto it, auto... c) { it.constant_feedback(l, c...); });
    case Work::find_error:
      if (node.in.count && errs_by_product(args, node, s.learning)) {
        // one by one, what predicts node l moves after it does
        const bool early = s.step == 0 || args.update_order == UpdateOrder::one_by_one;
        const bool settles = node.rounding && early && node.prediction_varies;
        NormsOf norms{l, -1, {}};
        return predict(node.moving, [&](auto it, auto... c) {
          it.find_error(l, c..., settles ? norms.in(it) : nullptr);
        });
      }
      for (int64_t t = 0; t < count; ++t)
        tile(t).err_of_constant(l, wanted);
      return;
    case Work::apply_precision:
      return multiply({{}, false, {node.full_precision, l}}, Input::residual,
                      [&](auto it, auto... c) { it.apply_precision(l, c...); });
    case Work::normalize:
      for (int64_t t = 0; t < count; ++t)
        tile(t).normalize(l);
      return;
    case Work::gather:
      return multiply({node.through[s.through].products, true}, Input::delta,
                      [&](auto it, auto... c) { it.gather(l, s.through, c...); });
    case Work::descend: {
      const bool fresh = s.step == 0 && !args.resume;
      const auto step = [&](auto it, auto... c) { it.update(l, c..., fresh); };
      const ChainEdge* gram = gram_among(args, node.out);
      if (gram)
        return multiply({{}, false, {gram->gram, l}}, Input::activation, step);
      if (fed)
        return multiply(fed_back, Input::delta, step);
      for (int64_t t = 0; t < count; ++t)
        tile(t).update(l, wanted.begin, wanted.end - wanted.begin, nullptr, fresh);
      return;
    }
    case Work::swap_activations:
      for (int64_t t = 0; t < count; ++t)
        tile(t).swap_activations(l);
      return;
    case Work::record:
      for (int64_t t = 0; t < count; ++t)
        tile(t).record(s.step);
      return;
    case Work::draw_noise:
      for (int64_t t = 0; t < count; ++t)
        tile(t).draw_noise(l, wanted, s.step);
      return;
    case Work::move:
      for (int64_t t = 0; t < count; ++t)
        tile(t).move(l, wanted, s.step);
      return;
    case Work::move_and_predict: {
      if (node.in.count && node.prediction_varies) {
        const bool settles = node.rounding && s.step == 0;
        NormsOf norms{l, -1, {}};
        return predict(node.moving, [&](auto it, auto... c) {
          it.move_and_predict(l, c..., settles ? norms.in(it) : nullptr, s.step, s.learning);
        });
      }
      for (int64_t t = 0; t < count; ++t)
        tile(t).move_and_predict(l, wanted.begin, wanted.end - wanted.begin, nullptr, nullptr,
                                 s.step, s.learning);
      return;
    }
    case Work::backpropagate: {
      const auto back = [&](auto it, auto... c) { it.backpropagate(l, c...); };
      if (fed)
        return multiply(fed_back, Input::delta, back);
      for (int64_t t = 0; t < count; ++t)
        back(tile(t), wanted.begin, wanted.end - wanted.begin, nullptr);
      return;
    }
    case Work::backpropagate_to_errors: {
      const auto back = [&](auto it, auto... c) { it.backpropagate_to_errors(l, c...); };
      if (fed)
        return multiply(fed_back, Input::delta, back);
      for (int64_t t = 0; t < count; ++t)
        back(tile(t), wanted.begin, wanted.end - wanted.begin, nullptr);
      return;
    }
    case Work::whiten:
      return multiply({{}, false, {node.whiten, l}}, Input::residual,
                      [&](auto it, auto... c) { it.whiten(l, c...); });
    case Work::spread:
      return multiply({{}, false, {node.spread, l}}, Input::residual,
                      [&](auto it, auto... c) { it.spread(l, c...); });
    case Work::measure:
      return multiply({{}, false, {node.measure, l}}, Input::residual,
                      [&](auto it, auto... c) { it.measure(l, c...); });
    case Work::judge:
      for (int64_t t = 0; t < count; ++t)
        tile(t).judge(s.step);
      return;
    case Work::search:
      for (int64_t t = 0; t < count; ++t)
        tile(t).search();
      return;
    case Work::accept:
      for (int64_t t = 0; t < count; ++t)
        tile(t).accept();
      return;
    case Work::keep_for_learning:
      for (int64_t t = 0; t < count; ++t)
        tile(t).keep_for_learning();
    }
  }

  bool done() const {
    for (int64_t t = 0; t < count; ++t)
      if (!tile(t).done())
        return false;
    return true;
  }

  bool settled() const {
    for (int64_t t = 0; t < count; ++t)
      if (!tile(t).settled())
        return false;
    return true;
  }

  void end() const {
    for (int64_t t = 0; t < count; ++t)
      tile(t).end();
  }

  void run() const {
    begin();
    stages(
        args, [&](Stage s) { stage(s, {0, rows(args, s)}); },
        [&](int64_t t) { return done() || narrowed(t); }, [&] { return settled(); });
    end();
  }

  // Whether the one tile has gone on with half of its vectors, to the end, as no more of its
  // samples have not come to theirs before sweep t.
  bool narrowed(int64_t t) const {
    if constexpr (kNarrows) {
      if (!args.narrows || t == 0 || t == args.steps * args.method.sweeps)
        return false;
      auto wide = tile(0);
      const Half<Layout> half = live(wide);
      if (half.count > Narrow::samples)
        return false;
      const Tiles<Narrow> narrow{args, workspaces + own_size(args, taken), partial, 2 * first, 1};
      narrow.lay_out_all();
      auto it = narrow.tile(0);
      take(it, wide, half);
      stages_of_sweeping(
          args, t, [&](Stage s) { narrow.stage(s, {0, narrow.rows(args, s)}); },
          [&](int64_t) { return narrow.done(); }, [&] { return narrow.settled(); });
      give_back(it, wide, half);
      return true;
    }
    return false;
  }
};

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
