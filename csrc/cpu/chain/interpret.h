#pragma once

// Runs the programs of laws of one's own, each instruction on a block of vectors, so that finding
// out which it is costs little.

#include "../../laws/operations.h"
#include "of_law.h"

namespace pyromancy::PYROMANCY_ISA {

inline constexpr int kBlock = 8; // vectors

template <class C>
class Interpreter {
public:
  // Where the energies are not wanted either, `energy` is false.
  Interpreter(const Expression& of, bool energy)
      : of_(of), count_(energy ? of.count : of.slopes), energy_(energy) {
    for (int i = 0; i < of.constants; ++i)
      numbers_[i] = splat(static_cast<C>(of.numbers[i]));
  }

  // Of up to kBlock vectors of states, predictions and thetas, null being zeros.
  __attribute__((noinline)) void run(const C* z, const C* mu, const C* theta, int vectors) {
    given_[0] = z;
    given_[1] = mu;
    given_[2] = theta;
    for (int i = 0; i < count_; ++i)
      run(of_.code[i], values_[i], vectors);
  }

  // What that came to for a vector.
  OfLaw<C> result(int q) const {
    const auto at = [&](int value) {
      const Source from = find(value);
      return load(from.at + q * from.step);
    };
    return {at(of_.pull), at(of_.push), energy_ ? at(of_.deviation) : Vec<C>{},
            energy_ && of_.has_theta ? at(of_.moment) : Vec<C>{}};
  }

private:
  struct Source {
    const C* at;
    int step;
  };

  Source find(int value) const {
    if (value < of_.given())
      return given_[value] ? Source{given_[value], kLanes<C>} : Source{as_numbers(&nothing_), 0};
    const int i = value - of_.first();
    return i < 0 ? Source{as_numbers(numbers_ + value - of_.given()), 0}
                 : Source{as_numbers(values_[i]), kLanes<C>};
  }
  static const C* as_numbers(const Vec<C>* v) {
    return reinterpret_cast<const C*>(v);
  }

  void run(const Instruction& i, Vec<C>* out, int vectors) const {
    const Source x = find(i.a), y = find(i.b), t = find(i.c);
    switch (i.op) {
#define PYROMANCY_OPERATION(name, value)                                                           \
  case Op::name:                                                                                   \
    for (int q = 0; q < vectors; ++q) {                                                            \
      [[maybe_unused]] const Vec<C> a = load(x.at + q * x.step), b = load(y.at + q * y.step),      \
                                    c = load(t.at + q * t.step), zero{}, one = splat(C(1));        \
      out[q] = value;                                                                              \
    }                                                                                              \
    return;
      PYROMANCY_OPERATIONS(PYROMANCY_OPERATION)
#undef PYROMANCY_OPERATION
    }
  }

  const Expression& of_;
  const int count_;
  const bool energy_;
  const C* given_[3];
  Vec<C> nothing_{}, numbers_[kMostConstants], values_[kMostInstructions][kBlock];
};

} // namespace pyromancy::PYROMANCY_ISA
