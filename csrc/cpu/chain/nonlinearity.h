#pragma once

// Activations of whole buffers.

#include "../../activate.h"
#include "../vec.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// f(kind), with the kind a constant of the compiler's
template <class F>
void with_kind(Activation kind, F f) {
#define PYROMANCY_KIND(name, value, slope)                                                         \
  case Activation::name:                                                                           \
    return f(std::integral_constant<Activation, Activation::name>{});
  switch (kind) { PYROMANCY_ACTIVATIONS(PYROMANCY_KIND) }
#undef PYROMANCY_KIND
}

// y = f(x), for so many vectors
template <class C>
__attribute__((noinline)) void activate_all(Nonlinearity f, const C* x, C* y, int64_t vectors) {
  with_kind(f.kind, [&](auto kind) {
    if (kind != Activation::identity || x != y)
      for (int64_t q = 0; q < vectors; ++q)
        store(y + q * kLanes<C>, activate<C>({kind, f.parameter}, load(x + q * kLanes<C>)));
  });
}

// to = f'(z) c, or that is added to it, where a = f(z), for so many vectors
template <class C>
__attribute__((noinline)) void backpropagate_all(Nonlinearity f, const C* z, const C* a,
                                                 const Vec<C>* c, bool add, C* to,
                                                 int64_t vectors) {
  with_kind(f.kind, [&](auto kind) {
    constexpr int w = kLanes<C>;
    const Nonlinearity of{kind, f.parameter};
    for (int64_t q = 0; q < vectors; ++q)
      store(to + q * w, fma(slope<C>(of, load(z + q * w), load(a + q * w)), c[q],
                            add ? load(to + q * w) : Vec<C>{}));
  });
}

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
