#pragma once

// What laws make of vectors of elements.

#include "../../laws/laws.h"
#include "args.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// What a law makes of elements: the deviation and the moment where these are wanted.
template <class C>
struct OfLaw {
  Vec<C> pull, push, deviation, moment;
};

template <class C, class L>
PYROMANCY_INLINE OfLaw<C> of_formulas(L law, Vec<C> z, Vec<C> mu, Vec<C> p, Vec<C> weight,
                                      bool energy) {
  OfLaw<C> x{law.pull(z, mu, p, weight), law.push(z, mu, p, weight), {}, {}};
  if (energy) {
    x.deviation = law.deviation(z, mu, p, weight);
    x.moment = law.moment(z, mu, p, weight);
  }
  return x;
}

// Once for all that asks, which is compiled for every activation and kind of tile.
template <class C>
__attribute__((noinline)) OfLaw<C> of_any_law(Law law, double parameter, Vec<C> z, Vec<C> mu,
                                              Vec<C> p, Vec<C> weight, bool energy) {
  OfLaw<C> x;
  with_formulas(law, parameter,
                [&](auto formulas) { x = of_formulas<C>(formulas, z, mu, p, weight, energy); });
  return x;
}

template <class C>
PYROMANCY_INLINE OfLaw<C> of_law(const ChainNode& node, Vec<C> z, Vec<C> mu, Vec<C> p,
                                 Vec<C> weight, bool energy) {
  return node.law == Law::gaussian
             ? of_formulas<C>(Gaussian{}, z, mu, p, weight, energy)
             : of_any_law<C>(node.law, node.law_parameter, z, mu, p, weight, energy);
}

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
