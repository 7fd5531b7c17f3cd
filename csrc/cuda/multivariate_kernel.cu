#include "multivariate_kernel.h"

#include "launch.h"

namespace pyromancy::cuda {
namespace {

constexpr int kTile = 32;                // of the factor, one lane for each of its columns or rows
constexpr int kWarps = kThreads / kWarp; // of a block
constexpr int kRows = 4;                 // of right-hand sides that a warp solves at a time
constexpr int kBlockRows = kWarps * kRows;

template <class C>
struct SolveMemory {
  C tile[kTile][kTile + 1]; // one more than a tile: lanes that go down a column meet no bank twice
  C known[kWarps][kRows][kTile];
};

template <class T>
__device__ inline Compute<T> element(const States& states, int64_t positions, int64_t row,
                                     int64_t column) {
  const int64_t sample = quotient(row, positions), position = row - sample * positions;
  return widen(static_cast<const T*>(
      states.data)[sample * states.sample + position * states.position + column * states.element]);
}

// Tile (i, j) of L with zeros above the diagonal, and ones on it where it is beyond the matrix, so
// that what is added to fill the last tile solves to 0. All threads of a block call it.
template <class T>
__device__ inline void load_tile(SolveMemory<Compute<T>>& memory, const SolveArgs& a, int64_t i,
                                 int64_t j) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const T* factor = static_cast<const T*>(a.factor.data);
  __syncthreads(); // nobody reads the tile before this one any more
  for (int t = warp; t < kTile; t += kWarps) {
    const int64_t row = i * kTile + t, column = j * kTile + lane;
    Compute<T> x = row == column ? 1 : 0;
    if (row < a.n && column <= row)
      x = widen(factor[row * a.factor.row + column * a.factor.column]);
    memory.tile[t][lane] = x;
  }
  __syncthreads();
}

// Solves for kRows rows from `first` on in each warp, a tile of kTile unknowns after the other,
// lane k having the k-th of them. `transposed` solves with L^T, from the last unknown to the first.
// What a lane reads of `work` it has itself written: solved unknowns, and, where `chained`, its
// right-hand side.
template <class T, bool transposed, bool chained>
__device__ inline void substitute(SolveMemory<Compute<T>>& memory, const SolveArgs& a,
                                  int64_t first) {
  using C = Compute<T>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  C* work = static_cast<C*>(a.work);
  const int64_t tiles = (a.n + kTile - 1) / kTile;
  const int64_t top = first + warp * kRows;
  C energy[kRows] = {};
  for (int64_t step = 0; step < tiles; ++step) {
    const int64_t mine = transposed ? tiles - 1 - step : step;
    const int64_t column = mine * kTile + lane;
    C x[kRows];
#pragma unroll
    for (int q = 0; q < kRows; ++q) {
      const int64_t row = top + q;
      x[q] = 0;
      if (row >= a.rows || column >= a.n)
        continue;
      if (chained) {
        x[q] = work[row * a.n + column];
        continue;
      }
      x[q] = element<T>(a.value, a.positions, row, column);
      if (a.pred.data)
        x[q] -= element<T>(a.pred, a.positions, row, column);
      if (a.weight)
        x[q] *=
            widen(static_cast<const T*>(a.weight)[quotient(row, a.positions) * a.weight_stride]);
    }

    // less what the unknowns before contribute
    for (int64_t before = 0; before < step; ++before) {
      const int64_t other = transposed ? tiles - 1 - before : before;
      load_tile<T>(memory, a, transposed ? other : mine, transposed ? mine : other);
#pragma unroll
      for (int q = 0; q < kRows; ++q) {
        const int64_t row = top + q, from = other * kTile + lane;
        memory.known[warp][q][lane] = row < a.rows && from < a.n ? work[row * a.n + from] : C(0);
      }
      __syncwarp();
#pragma unroll 8
      for (int k = 0; k < kTile; ++k) {
        const C l = transposed ? memory.tile[k][lane] : memory.tile[lane][k];
#pragma unroll
        for (int q = 0; q < kRows; ++q)
          x[q] -= l * memory.known[warp][q][k];
      }
    }

    // the tile on the diagonal, one unknown after the other
    load_tile<T>(memory, a, mine, mine);
    const C diagonal = memory.tile[lane][lane], inverse = C(1) / diagonal;
#pragma unroll 4
    for (int j = 0; j < kTile; ++j) {
      const int k = transposed ? kTile - 1 - j : j;
      const C l = transposed ? memory.tile[k][lane] : memory.tile[lane][k];
      const bool later = transposed ? lane < k : lane > k;
#pragma unroll
      for (int q = 0; q < kRows; ++q) {
        const C solved = __shfl_sync(0xffffffffu, x[q] * inverse, k);
        if (lane == k)
          x[q] = solved;
        else if (later)
          x[q] -= l * solved;
      }
    }

#pragma unroll
    for (int q = 0; q < kRows; ++q) {
      const int64_t row = top + q, at = row * a.n + column;
      if (row >= a.rows || column >= a.n)
        continue;
      work[at] = x[q];
      if (a.out)
        static_cast<T*>(a.out)[at] = narrow<T>(x[q]);
      if (a.negative)
        static_cast<T*>(a.negative)[at] = narrow<T>(-x[q]);
      if (!transposed && a.energy)
        energy[q] += C(0.5) * x[q] * x[q] + std::log(diagonal);
    }
  }
  if (!transposed && a.energy)
#pragma unroll
    for (int q = 0; q < kRows; ++q) {
      const C sum = sum_over<kWarp>(energy[q]);
      if (lane == 0 && top + q < a.rows)
        static_cast<C*>(a.energy)[top + q] = sum;
    }
}

template <class T, Solve solve>
__global__ void __launch_bounds__(kThreads) solve_kernel(const SolveArgs a) {
  __shared__ SolveMemory<Compute<T>> memory;
  for (int64_t first = blockIdx.x * static_cast<int64_t>(kBlockRows); first < a.rows;
       first += gridDim.x * static_cast<int64_t>(kBlockRows)) {
    if constexpr (solve != Solve::backward)
      substitute<T, false, false>(memory, a, first);
    if constexpr (solve != Solve::forward)
      substitute<T, true, solve == Solve::both>(memory, a, first);
  }
}

// A tile of grad_value^T whitened, summed over one segment of the rows. Tiles above the diagonal
// are left out.
template <class T>
__global__ void __launch_bounds__(kThreads) outer_kernel(const OuterArgs a) {
  using C = Compute<T>;
  __shared__ C left[kTile][kTile], right[kTile][kTile];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t rows = a.batch * a.positions, segment = (rows + a.segments - 1) / a.segments;
  const int64_t tiles = (a.n + kTile - 1) / kTile, items = a.segments * tiles * tiles;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t outer = quotient(item, tiles), tile_j = item - outer * tiles;
    const int64_t s = quotient(outer, tiles), tile_i = outer - s * tiles;
    if (tile_j > tile_i)
      continue;
    const int64_t end = rows < (s + 1) * segment ? rows : (s + 1) * segment;
    C sums[kRows] = {};
    for (int64_t first = s * segment; first < end; first += kTile) {
      __syncthreads(); // nobody reads the rows before these any more
      for (int t = warp; t < kTile; t += kWarps) {
        const int64_t row = first + t, i = tile_i * kTile + lane, j = tile_j * kTile + lane;
        left[t][lane] = row < end && i < a.n ? element<T>(a.grad_value, a.positions, row, i) : C(0);
        right[t][lane] = row < end && j < a.n ? element<T>(a.whitened, a.positions, row, j) : C(0);
      }
      __syncthreads();
#pragma unroll 8
      for (int k = 0; k < kTile; ++k)
#pragma unroll
        for (int q = 0; q < kRows; ++q)
          sums[q] += left[k][warp * kRows + q] * right[k][lane];
    }
#pragma unroll
    for (int q = 0; q < kRows; ++q) {
      const int64_t i = tile_i * kTile + warp * kRows + q, j = tile_j * kTile + lane;
      if (i < a.n && j < a.n)
        static_cast<C*>(a.partial)[(s * a.n + i) * a.n + j] = sums[q];
    }
  }
}

// One block sums the weights of all samples.
template <class T>
__global__ void __launch_bounds__(kThreads) total_kernel(const OuterArgs a) {
  double sum = 0;
  for (int64_t b = threadIdx.x; b < a.batch; b += kThreads)
    sum += widen(static_cast<const T*>(a.grad)[b * a.grad_stride]);
  sum = sum_over<kThreads>(sum);
  if (threadIdx.x == 0)
    *static_cast<Compute<T>*>(a.total) = static_cast<Compute<T>>(sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads) gather_kernel(const OuterArgs a) {
  using C = Compute<T>;
  for (int64_t e = first_thread(); e < a.n * a.n; e += all_threads()) {
    const int64_t i = quotient(e, a.n), j = e - i * a.n;
    C sum = 0;
    if (j <= i)
      for (int64_t s = 0; s < a.segments; ++s)
        sum -= static_cast<const C*>(a.partial)[s * a.n * a.n + e];
    if (j == i)
      sum += static_cast<C>(a.positions) * *static_cast<const C*>(a.total) /
             widen(static_cast<const T*>(a.factor.data)[i * (a.factor.row + a.factor.column)]);
    static_cast<T*>(a.out)[e] = narrow<T>(sum);
  }
}

} // namespace

void launch_solve(Solve solve, const SolveArgs& args, void* stream) {
  const int64_t blocks = blocks_for(args.rows, kBlockRows);
  with_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    switch (solve) {
    case Solve::forward:
      return launch(solve_kernel<T, Solve::forward>, blocks, stream, args);
    case Solve::backward:
      return launch(solve_kernel<T, Solve::backward>, blocks, stream, args);
    case Solve::both:
      return launch(solve_kernel<T, Solve::both>, blocks, stream, args);
    }
  });
}

void launch_outer(const OuterArgs& args, void* stream) {
  const int64_t tiles = ceil_div(args.n, kTile);
  with_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(outer_kernel<T>, blocks_for(args.segments * tiles * tiles, 1), stream, args);
    launch(total_kernel<T>, 1, stream, args);
    launch(gather_kernel<T>, blocks_for(args.n * args.n, kThreads), stream, args);
  });
}

} // namespace pyromancy::cuda
