#pragma once

#include "../vec.h"

namespace pyromancy::PYROMANCY_ISA {

// A sum of vectors, carried in double.
template <class C>
struct Doubles {
  static constexpr int parts = sizeof(double) / sizeof(C), lanes = kLanes<double>;
  Vec<double> of[parts];

  void add(Vec<C> x) {
    if constexpr (parts == 1) {
      of[0] += x;
    } else {
      of[0] += __builtin_convertvector(low<float, kLanes<C>>(x), Vec<double>);
      of[1] += __builtin_convertvector(high<float, kLanes<C>>(x), Vec<double>);
    }
  }
  // The first `count` lanes of x alone.
  void add(Vec<C> x, int64_t count) {
    if (count == kLanes<C>)
      return add(x);
    Vec<C> first{};
    for (int64_t i = 0; i < count; ++i)
      first[i] = x[i];
    add(first);
  }
  void add_to(double* to) const {
    for (int p = 0; p < parts; ++p)
      store(to + p * lanes, load(to + p * lanes) + of[p]);
  }
  void add_all_to(double& to, int64_t count) const {
    for (int64_t i = 0; i < count; ++i)
      to += of[i / lanes][i % lanes];
  }
};

} // namespace pyromancy::PYROMANCY_ISA
