#include "chain_step_kernel.h"

#include "../activate.h"
#include "../laws/laws.h"
#include "../rules/descent.h"
#include "interpret.h"
#include "launch.h"

namespace pyromancy::cuda {
namespace {

template <class T, int V>
__device__ inline void load_or(T (&to)[V], const void* from, int64_t at, T otherwise) {
  if (from) {
    load<V>(to, static_cast<const T*>(from) + at);
    return;
  }
#pragma unroll
  for (int k = 0; k < V; ++k)
    to[k] = otherwise;
}

template <class T, int V>
__device__ inline void store_if(void* to, int64_t at, const T (&from)[V]) {
  if (to)
    store<V>(static_cast<T*>(to) + at, from);
}

struct Nothing {};

// `own` is the program of a law of one's own, or nothing.
template <class T, int V, class Own>
__global__ void __launch_bounds__(kThreads)
    error_kernel(const ErrorArgs a, [[maybe_unused]] const __grid_constant__ Own own) {
  const int64_t packs = a.n / V;
  for (int64_t i = first_thread(); i < a.rows * packs; i += all_threads()) {
    const int64_t row = quotient(i, packs), column = (i - row * packs) * V, at = i * V;
    T product[V], mu[V], z[V], x[V];
    if (a.product) {
      load<V>(product, static_cast<const T*>(a.product) + at);
      load_or<T, V>(x, a.bias, column, T(0));
#pragma unroll
      for (int k = 0; k < V; ++k)
        product[k] += x[k];
      if (a.source) {
        load<V>(x, static_cast<const T*>(a.source) + at);
#pragma unroll
        for (int k = 0; k < V; ++k)
          product[k] += static_cast<T>(a.skip) * x[k];
      }
#pragma unroll
      for (int k = 0; k < V; ++k)
        mu[k] = activate(a.after, product[k]);
    } else {
      load<V>(mu, static_cast<const T*>(a.given) + row * a.given_row + column);
    }
    store_if<T, V>(a.prediction, at, mu);
    if (!a.state)
      continue;
    load<V>(z, static_cast<const T*>(a.state) + at);
    if (a.residual) {
#pragma unroll
      for (int k = 0; k < V; ++k)
        x[k] = subtract(z[k], mu[k]);
      store<V>(static_cast<T*>(a.residual) + at, x);
    }
    const T weight = a.sample_weights ? static_cast<const T*>(a.sample_weights)[row] : T(1);
    T pull[V], push[V], deviation[V], moment[V];
    load_or<T, V>(x, a.weighed ? a.weighed : a.rate, a.weighed ? at : column, T(1));
#pragma unroll
    for (int k = 0; k < V; ++k)
      x[k] *= weight;
    if (a.weighed) {
#pragma unroll
      for (int k = 0; k < V; ++k) {
        pull[k] = push[k] = x[k];
        deviation[k] = T(0.5) * gaussian::twice_energy_by_pull(subtract(z[k], mu[k]), x[k]);
        moment[k] = 0; // nothing learns from it
      }
    } else if constexpr (std::is_same_v<Own, Expression>) {
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const T theta =
            a.theta ? static_cast<const T*>(a.theta)[row * a.theta_row + column * a.theta_column]
                    : T(0);
        const OfLaw<T> of = of_expression(own, z[k], mu[k], theta, a.deviation || a.moment);
        pull[k] = of.pull * x[k];
        push[k] = of.push * x[k];
        deviation[k] = of.deviation * x[k];
        moment[k] = of.moment * x[k];
      }
    } else {
      const T whole = static_cast<T>(a.weight) * weight;
      with_formulas(a.law, a.law_parameter, [&](auto law) {
#pragma unroll
        for (int k = 0; k < V; ++k) {
          pull[k] = law.pull(z[k], mu[k], x[k], whole);
          push[k] = law.push(z[k], mu[k], x[k], whole);
          deviation[k] = law.deviation(z[k], mu[k], x[k], whole);
          moment[k] = law.moment(z[k], mu[k], x[k], whole);
        }
      });
    }
    store_if<T, V>(a.error, at, pull);
    store_if<T, V>(a.deviation, at, deviation);
    const T scale = static_cast<T>(a.scale), normalizer = static_cast<T>(a.normalizer) * weight;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      push[k] *= scale;
      moment[k] = -scale * (normalizer + moment[k]);
    }
    store_if<T, V>(a.moment, at, moment);
    if (a.delta && a.product)
#pragma unroll
      for (int k = 0; k < V; ++k)
        push[k] *= slope(a.after, product[k], mu[k]);
    store_if<T, V>(a.delta, at, push);
  }
}

// The same of a law of rows, a warp for each.
template <class T>
__global__ void __launch_bounds__(kThreads) row_error_kernel(const ErrorArgs a) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t row = first_thread() / kWarp; row < a.rows; row += all_threads() / kWarp) {
    const auto logit = [&](int64_t column) {
      if (!a.product)
        return static_cast<const T*>(a.given)[row * a.given_row + column];
      const int64_t at = row * a.n + column;
      T product = static_cast<const T*>(a.product)[at];
      if (a.bias)
        product += static_cast<const T*>(a.bias)[column];
      if (a.source)
        product += static_cast<T>(a.skip) * static_cast<const T*>(a.source)[at];
      return product;
    };
    const T* const z = static_cast<const T*>(a.state) + row * a.n;
    T most = logit(0);
#pragma unroll 1
    for (int64_t j = lane; j < a.n; j += kWarp)
      most = logit(j) > most ? logit(j) : most;
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const T other = __shfl_down_sync(0xffffffffu, most, step);
      most = other > most ? other : most;
    }
    most = __shfl_sync(0xffffffffu, most, 0);
    double total = 0, mass = 0; // of e^x, and of z
#pragma unroll 1
    for (int64_t j = lane; j < a.n; j += kWarp) {
      total += exp(logit(j) - most);
      mass += z[j];
    }
    total = __shfl_sync(0xffffffffu, sum_over<kWarp>(total), 0);
    mass = __shfl_sync(0xffffffffu, sum_over<kWarp>(mass), 0);
    const T share = static_cast<T>(mass / total), log_total = static_cast<T>(std::log(total));
    const T weight = a.sample_weights ? static_cast<const T*>(a.sample_weights)[row] : T(1);
#pragma unroll 1
    for (int64_t j = lane; j < a.n; j += kWarp) {
      const T p = a.rate ? weight * static_cast<const T*>(a.rate)[j] : weight;
      const T x = logit(j) - most, push = Categorical::push(z[j], exp(x), share, p);
      const int64_t at = row * a.n + j;
      if (a.error)
        static_cast<T*>(a.error)[at] = push;
      if (a.deviation)
        static_cast<T*>(a.deviation)[at] = Categorical::deviation(z[j], x, log_total, p);
      if (a.delta)
        static_cast<T*>(a.delta)[at] = static_cast<T>(a.scale) * push;
    }
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) update_kernel(const UpdateArgs a) {
  const T momentum = static_cast<T>(a.momentum), undamped = static_cast<T>(1 - a.dampening);
  for (int64_t at = first_thread() * V; at < a.size; at += all_threads() * V) {
    T state[V], gradient[V], x[V];
    load<V>(state, static_cast<const T*>(a.state) + at);
    load_or<T, V>(gradient, a.error, at, T(0));
    if (a.feedback) {
      T feedback[V];
      load<V>(feedback, static_cast<const T*>(a.feedback) + at);
      load_or<T, V>(x, a.constant_feedback, at, T(0));
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const T back = a.constant_feedback ? x[k] - feedback[k] : feedback[k];
        gradient[k] -= slope(a.before, state[k], activate(a.before, state[k])) * back;
      }
    }
    if (a.delta) {
      load<V>(x, static_cast<const T*>(a.delta) + at);
#pragma unroll
      for (int k = 0; k < V; ++k)
        gradient[k] -= static_cast<T>(a.skip) * x[k];
    }
    if (a.velocity) {
      load<V>(x, static_cast<const T*>(a.velocity) + at);
#pragma unroll
      for (int k = 0; k < V; ++k)
        gradient[k] = accelerate<T>(gradient[k], x[k], momentum, undamped, a.nesterov, a.starts);
      store<V>(static_cast<T*>(a.velocity) + at, x);
    }
#pragma unroll
    for (int k = 0; k < V; ++k) {
      state[k] = descend<T>(state[k], gradient[k], static_cast<T>(a.lr));
      x[k] = activate(a.before, state[k]);
    }
    store<V>(static_cast<T*>(a.state) + at, state);
    store_if<T, V>(a.activated, at, x);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) activate_kernel(const ActivateArgs a) {
  for (int64_t at = first_thread() * V; at < a.size; at += all_threads() * V) {
    T x[V];
    load<V>(x, static_cast<const T*>(a.in) + at);
#pragma unroll
    for (int k = 0; k < V; ++k)
      x[k] = activate(a.f, x[k]);
    store<V>(static_cast<T*>(a.out) + at, x);
  }
}

} // namespace

void launch_error(const ErrorArgs& a, void* stream) {
  with_float(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (is_rowwise(a.law) && a.state)
      return launch(row_error_kernel<T>, blocks_for(a.rows, kThreads / kWarp), stream, a);
    if (a.law == Law::expression && a.state)
      return launch(error_kernel<T, 1, Expression>, blocks_for(a.rows * a.n, kThreads), stream, a,
                    *a.expression);
    with_pack<T>(a.given_row % kPack<T> == 0 ? a.n : 1,
                 {a.product, a.bias, a.source, a.given, a.state, a.rate, a.weighed, a.prediction,
                  a.residual, a.error, a.deviation, a.delta, a.moment},
                 [&](auto pack) {
                   launch(error_kernel<T, pack, Nothing>, blocks_for(a.rows * a.n, pack * kThreads),
                          stream, a, Nothing{});
                 });
  });
}

void launch_update(const UpdateArgs& a, void* stream) {
  with_float(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(
        a.size,
        {a.state, a.velocity, a.error, a.feedback, a.constant_feedback, a.delta, a.activated},
        [&](auto pack) {
          launch(update_kernel<T, pack>, blocks_for(a.size, pack * kThreads), stream, a);
        });
  });
}

void launch_activate(const ActivateArgs& a, void* stream) {
  with_float(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(a.size, {a.in, a.out}, [&](auto pack) {
      launch(activate_kernel<T, pack>, blocks_for(a.size, pack * kThreads), stream, a);
    });
  });
}

} // namespace pyromancy::cuda
