#pragma once

#include <cstring>

#include "nonlinearity.h"
#include "workspace.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// What nodes are predicted with, and from what.
template <class Layout>
struct Prediction : Workspace<Layout> {
  using Base = Workspace<Layout>;
  using Base::w, Base::width, Base::row, Base::args, Base::buffers, Base::round;
  using typename Base::C, typename Base::P;

  // before(z) for the products away from node l
  void activate_source(int64_t l, int64_t i, int64_t rows) {
    const Buffers<P>& b = buffers[l];
    const C* const z = b.source();
    if (b.base && !args.resume)
      std::memcpy(b.base + i * row, b.z + i * row, rows * row * sizeof(C));
    if (b.a != z)
      activate_all<C>(args.node[l].before, z + i * row, b.a + i * row, rows * width);
    round(l, Input::activation, i, rows);
    activate_through(l, i, rows);
  }

  // Other activations of rows i to i + rows.
  void activate_through(int64_t l, int64_t i, int64_t rows) const {
    const Buffers<P>& b = buffers[l];
    for (int64_t k = 0; k < args.node[l].throughs; ++k) {
      activate_all<C>(args.node[l].through[k].before, b.source() + i * row,
                      b.activation(k) + i * row, rows * width);
      if constexpr (P::kColumns > 1)
        Layout::round(b.activation(k), args.node[l].n, i, rows, b.paired_through + k * b.size);
    }
  }

  // The norm of before(z) of the nodes that predict node l, and of the z that skips take, for every
  // sample, if it is wanted.
  struct Norms {
    Vec<C> of[Layout::width];
  };
  Norms norms(int64_t l) const {
    double squares[Layout::samples] = {};
    for (const Numbers edges : {args.node[l].moving.products, args.node[l].resting.products})
      for (const int64_t e : edges) {
        const int64_t source = args.edge[e].source;
        Layout::sum(buffers[source].activation(args.edge[e].through), args.node[source].n, squares,
                    [](auto x) { return x * x; });
      }
    for (const Numbers edges : {args.node[l].moving.skips, args.node[l].resting.skips})
      for (const int64_t e : edges) {
        const int64_t source = args.edge[e].source;
        Layout::sum(buffers[source].source(), args.node[source].n, squares,
                    [](auto x) { return x * x; });
      }
    Norms result;
    for (double& square : squares)
      square = __builtin_sqrt(square);
    for (int v = 0; v < width; ++v)
      result.of[v] = Layout::per_sample(squares, v);
    return result;
  }

  // The prediction where a state that is not known differs from it by no more than rounding does,
  // else the state.
  static Vec<C> settled(const Buffers<P>& b, int64_t at, Vec<C> z, Vec<C> prediction,
                        Vec<C> rounding) {
    constexpr C eps = sizeof(C) == 4 ? C(1.1920929e-7) : C(2.220446049250313e-16);
    const Vec<C> d = z - prediction, size = prediction < C(0) ? -prediction : prediction;
    const Vec<C> bound = rounding + C(4) * eps * size;
    const Vec<C> to = (d < C(0) ? -d : d) <= bound ? prediction : z;
    return b.known ? load(b.known + at) > C(0) ? z : to : to;
  }

  // Adds what skips products to rows i to i + rows of these.
  void skip(Numbers edges, int64_t i, int64_t rows, Vec<C>* c) const {
    for (const int64_t e : edges) {
      const C* const z = buffers[args.edge[e].source].source() + i * row;
      const Vec<C> by = splat(static_cast<C>(args.edge[e].skip));
      for (int64_t q = 0; q < rows * width; ++q)
        c[q] = fma(by, load(z + q * w), c[q]);
    }
  }

  // Adds what does not change, likewise.
  void add_rest(int64_t l, int64_t i, int64_t rows, Vec<C>* c) const {
    const C* const rest = buffers[l].rest + i * row;
    for (int64_t q = 0; q < rows * width; ++q)
      c[q] += load(rest + q * w);
  }

  // Rows i to i + rows of a prediction that does not change, or of what of one does not, given
  // those of its products.
  void predict_once(int64_t l, int64_t i, int64_t rows, const Vec<C>* c, const Norms* norm) {
    if (args.node[l].prediction_varies) {
      for (int64_t q = 0; q < rows * width; ++q)
        store(buffers[l].rest + i * row + q * w, c[q]);
      return;
    }
    predict(l, i, rows, c, args.node[l].bias, buffers[l].mu);
    if (norm) {
      for (int64_t r = i; r < i + rows; ++r)
        for (int v = 0; v < width; ++v) {
          C* const z = buffers[l].z + r * row + v * w;
          store(z,
                settled(buffers[l], r * row + v * w, load(z), load(buffers[l].mu + r * row + v * w),
                        Layout::constant(args.node[l].rounding, r) * norm->of[v]));
        }
      activate_source(l, i, rows);
    }
    if (args.node[l].swept && !args.node[l].starts_by_some) {
      for (int64_t at = i * row; at < (i + rows) * row; at += w)
        store(buffers[l].z + at, load(buffers[l].mu + at));
      activate_source(l, i, rows);
    }
  }

  // The same of a state that starts at its prediction. `find_error_as` does the same arithmetic, so
  // that the first error is zero in every bit.
  void sweep(int64_t l, int64_t i, int64_t rows, const Vec<C>* c) {
    const ChainNode& node = args.node[l];
    predict(l, i, rows, c, node.starts_by_some ? node.start_bias : node.bias, buffers[l].z);
    activate_source(l, i, rows);
  }

  void predict(int64_t l, int64_t i, int64_t rows, const Vec<C>* c, const void* bias, C* to) {
    const ChainNode& node = args.node[l];
    C* const mu = to + i * row;
    for (int64_t q = 0; q < rows * width; ++q)
      store(mu + q * w, c[q] + Layout::constant(bias, i + q / width));
    activate_all<C>(node.after, mu, mu, rows * width);
  }
};

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
