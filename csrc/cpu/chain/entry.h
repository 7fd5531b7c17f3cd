#pragma once

// The entry points of a kind of tile. Each way to keep samples is compiled for each data type by
// itself, side by side with the others: WAY_TYPE_kernel.cpp.

#include "kernels.h"
#include "tiles.h"

namespace pyromancy::PYROMANCY_ISA {

// What products of float32 take.
#if defined(__AVX512BF16__)
using Float = Paired;
#else
using Float = Exact<float>;
#endif

// With two vectors of samples, and one; with four samples, and one.
extern const TileKernels wide_float[2], wide_double[2], thin_float[2], thin_double[2];

namespace {

template <class Layout>
Tiles<Layout> tiles(const ChainArgs& args, void* workspaces, int64_t first, int64_t count = 1,
                    void* partial = nullptr) {
  using Sums = Vec<typename Layout::C>*;
  return {args, static_cast<char*>(workspaces), static_cast<Sums>(partial), first, count};
}

template <class Layout>
constexpr TileKernels tile_kernels() {
  using C = typename Layout::C;
  using O = typename Layout::O;
  return {
      .samples = Layout::samples,
      .block = Layout::block,
      .packed_size = Layout::packed_size,
      .packed_stride = Layout::packed_stride,
      .as_it_is =
          [](const void* w, int64_t rows, int64_t row_stride, int64_t depth_stride,
             int64_t passes) {
            return Layout::as_it_is({static_cast<const C*>(w), row_stride, depth_stride}, rows,
                                    passes);
          },
      .pack =
          [](const void* w, int64_t rows, int64_t depth, int64_t row_stride, int64_t depth_stride,
             Rows wanted, void* packed) {
            Layout::pack({static_cast<const C*>(w), row_stride, depth_stride}, rows, depth, wanted,
                         static_cast<O*>(packed));
          },
      .workspace_size = Tiles<Layout>::workspace_size,
      .partial_size =
          [](int64_t tiles) { return tiles * Layout::partial * int64_t(sizeof(Vec<C>)); },
      .run = [](const ChainArgs& args, void* workspace, void* partial,
                int64_t tile) { tiles<Layout>(args, workspace, tile, 1, partial).run(); },
      .begin = [](const ChainArgs& args, void* workspace,
                  int64_t tile) { tiles<Layout>(args, workspace, tile).begin(); },
      .stage =
          [](const ChainArgs& args, Stage stage, Rows wanted, void* workspaces, void* partial,
             int64_t tile, int64_t count) {
            tiles<Layout>(args, workspaces, tile, count, partial).stage(stage, wanted);
          },
      .end = [](const ChainArgs& args, void* workspace,
                int64_t tile) { tiles<Layout>(args, workspace, tile).end(); },
      .done = [](const ChainArgs& args, void* workspace,
                 int64_t tile) { return tiles<Layout>(args, workspace, tile).done(); },
      .settled = [](const ChainArgs& args, void* workspace,
                    int64_t tile) { return tiles<Layout>(args, workspace, tile).settled(); },
      .rows = Tiles<Layout>::rows,
  };
}

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
