#include "kernels.h"
#include "learning.h"
#include "tiles.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// f(layout) for the layout of a kind of tile
template <class P, class F>
auto with_layout(TileKind kind, F f) {
  switch (kind) {
  case TileKind::wide2:
    return f(Wide<P, 2>{});
  case TileKind::wide1:
    return f(Wide<P, 1>{});
  case TileKind::thin4:
    return f(Thin<P, 4>{});
  case TileKind::thin1:
    return f(Thin<P, 1>{});
  }
  __builtin_unreachable();
}

template <class P>
int64_t packed_size(TileKind kind, int64_t rows, int64_t depth) {
  return with_layout<P>(kind, [&](auto layout) { return layout.packed_size(rows, depth); });
}

template <class P>
int64_t packed_stride(TileKind kind, int64_t rows) {
  return with_layout<P>(kind, [&](auto layout) { return layout.packed_stride(rows); });
}

template <class P>
PackedMatrix as_it_is(TileKind kind, const void* matrix, int64_t rows, int64_t row_stride,
                      int64_t depth_stride, int64_t passes) {
  const Strided<typename P::Number> m{static_cast<const typename P::Number*>(matrix), row_stride,
                                      depth_stride};
  return with_layout<P>(kind, [&](auto layout) { return layout.as_it_is(m, rows, passes); });
}

template <class P>
void pack(TileKind kind, const void* matrix, int64_t rows, int64_t depth, int64_t row_stride,
          int64_t depth_stride, Rows wanted, void* packed) {
  const Strided<typename P::Number> m{static_cast<const typename P::Number*>(matrix), row_stride,
                                      depth_stride};
  with_layout<P>(kind, [&](auto layout) {
    layout.pack(m, rows, depth, wanted, static_cast<typename P::Operand*>(packed));
  });
}

template <class P>
int64_t workspace_size(const ChainArgs& args, TileKind kind) {
  return with_layout<P>(kind,
                        [&](auto layout) { return Tiles<decltype(layout)>::workspace_size(args); });
}

template <class P>
int64_t partial_size(TileKind kind, int64_t tiles) {
  return with_layout<P>(kind, [&](auto layout) {
    return tiles * layout.partial * int64_t(sizeof(Vec<typename P::Number>));
  });
}

template <class P, class F>
void with_tiles(const ChainArgs& args, TileKind kind, void* workspaces, void* partial, int64_t tile,
                int64_t tiles, F f) {
  with_layout<P>(kind, [&](auto layout) {
    f(Tiles<decltype(layout)>{args, static_cast<char*>(workspaces),
                              static_cast<Vec<typename P::Number>*>(partial), tile, tiles});
  });
}

template <class P>
void run(const ChainArgs& args, TileKind kind, void* workspace, void* partial, int64_t tile) {
  with_tiles<P>(args, kind, workspace, partial, tile, 1, [](auto it) { it.run(); });
}

template <class P>
void begin(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile) {
  with_tiles<P>(args, kind, workspace, nullptr, tile, 1, [](auto it) { it.begin(); });
}

template <class P>
void stage(const ChainArgs& args, TileKind kind, Stage stage, Rows wanted, void* workspaces,
           void* partial, int64_t tile, int64_t tiles) {
  with_tiles<P>(args, kind, workspaces, partial, tile, tiles,
                [&](auto it) { it.stage(stage, wanted); });
}

template <class P>
void end(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile) {
  with_tiles<P>(args, kind, workspace, nullptr, tile, 1, [](auto it) { it.end(); });
}

template <class P>
bool done(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile) {
  bool result = false;
  with_tiles<P>(args, kind, workspace, nullptr, tile, 1, [&](auto it) { result = it.done(); });
  return result;
}

template <class P>
bool settled(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile) {
  bool result = false;
  with_tiles<P>(args, kind, workspace, nullptr, tile, 1, [&](auto it) { result = it.settled(); });
  return result;
}

template <class P>
int64_t rows(const ChainArgs& args, TileKind kind, Stage stage) {
  return with_layout<P>(kind,
                        [&](auto layout) { return Tiles<decltype(layout)>::rows(args, stage); });
}

template <class P>
constexpr ChainKernels table() {
  using C = typename P::Number;
  using Thin4 = Thin<P, 4>;
  using Thin1 = Thin<P, 1>;
  return {kLanes<C>,
          P::kColumns,
          {2 * kLanes<C>, kLanes<C>, 4, 1},
          {kRows, kRows, Thin4::block, Thin1::block},
          4 * kRows,
          packed_size<P>,
          packed_stride<P>,
          as_it_is<P>,
          pack<P>,
          workspace_size<P>,
          partial_size<P>,
          run<P>,
          begin<P>,
          stage<P>,
          end<P>,
          done<P>,
          settled<P>,
          rows<P>,
          2 * kLanes<C>,
          2 * kLanes<C> * kDepth,
          outer<P>,
          row_norms<C>,
          sum_rows<C>,
          learn<C>};
}

} // namespace

#if defined(__AVX512BF16__)
extern const ChainKernels bfloat16_chain_kernels = table<Paired>();
#else
extern const ChainKernels chain_kernels[kDTypes] = {table<Exact<float>>(), table<Exact<double>>()};
#endif

} // namespace pyromancy::PYROMANCY_ISA
