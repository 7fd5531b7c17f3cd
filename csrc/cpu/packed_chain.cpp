#include "packed_chain.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace pyromancy {
namespace {

constexpr int64_t kTogether = 8;      // tiles that a thread takes through a product side by side
constexpr int64_t kAtOnce = 64 << 20; // bytes of tiles whose stages are shared out

constexpr int64_t kNever = INT64_MAX;

const ChainKernels& select(const Plan& plan, const Operands& operands) {
  const DType dtype = dtype_of("states", operands[plan.nodes.front().state]);
#if PYROMANCY_X86_ISAS
  if (plan.precision == MatmulPrecision::medium && dtype == DType::float32 && multiplies_bfloat16())
    return avx512_bf16::bfloat16_chain_kernels;
#endif
  return PYROMANCY_SELECT_KERNELS(chain_kernels, dtype);
}

// In bytes, of one core; a guess where the system does not tell. Asked once: on a virtual machine
// the answer may take the hypervisor.
int64_t second_level_cache() {
  static const int64_t bytes = [] {
    long told = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    told = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return told > 0 ? told : 1L << 20;
  }();
  return bytes;
}

} // namespace

Tiling PackedChain::choose(const std::vector<Product>& products) const {
  constexpr double from_cache[kTileKinds] = {1, 1.42, 1.45, 2.95};
  constexpr double from_afar[kTileKinds] = {1, 1.35, 4, 11};
  // In multiply-adds of a core: half of what it could do while the threads meet, about 5 us.
  const double meeting = 12000.0 * kernels.lanes * kernels.columns_at_once;
  const int64_t threads = torch::stable::get_num_threads();
  int64_t elements = 0;
  for (const Product& p : products)
    elements += p.rows * p.depth;
  const int64_t bytes = elements * element_size_ / kernels.columns_at_once;
  const int64_t cache = second_level_cache();
  // Of matrices that are read over and over a part stays in a cache that is a little too small.
  const auto is_far = [&](int64_t read_by_one) { return read_by_one > cache * 5 / 4; };
  const bool far = is_far(bytes), far_shared = is_far(bytes / threads);
  // Matrices that come from memory for every tile hold up even the widest.
  const double held_up = bytes > 16 * cache ? 1.1 : 1;
  Tiling best{};
  double least = 0;
  for (int k = 0; k < kTileKinds; ++k) {
    const auto kind = static_cast<TileKind>(k);
    const bool thin = kind == TileKind::thin4 || kind == TileKind::thin1;
    const int64_t block = kernels.tiles[k]->block * (thin ? kernels.lanes : 1); // neurons
    const int64_t samples = kernels.tiles[k]->samples, tiles = ceil_div(args.batch, samples);
    const double of_tile = static_cast<double>(samples) * (far ? from_afar : from_cache)[k];
    const double of_shared =
        static_cast<double>(samples) * (far_shared ? from_afar : from_cache)[k];
    const auto consider = [&](bool together, double cost) {
      if ((k == 0 && !together) || cost < least)
        best = {kind, together, together ? far_shared : far}, least = cost;
    };
    consider(false, static_cast<double>(ceil_div(tiles, threads) * elements) * of_tile * held_up);
    double cost = 0;
    for (const Product& p : products) {
      const int64_t pieces = ceil_div(tiles, kTogether) * ceil_div(p.rows, block);
      cost += meeting + static_cast<double>(tiles * p.rows * p.depth) * of_shared /
                            static_cast<double>(std::min(threads, pieces));
    }
    consider(true, cost);
  }
  return best;
}

PackedChain::PackedChain(const Plan& plan, const Operands& operands)
    : kernels(select(plan, operands)), plan_(plan), operands_(operands),
      element_size_(operands[plan.nodes.front().state].element_size()) {
  const int64_t count = static_cast<int64_t>(plan.nodes.size());
  args.batch = operands[plan.nodes.front().state].size(0);
  args.diverged = &diverged;
  args.nodes = count;
  const Method& method = plan.method;
  args.lr = method.lr;
  args.momentum = method.momentum;
  args.dampening = method.dampening;
  args.nesterov = method.nesterov;
  args.update_order = method.update_order;
  args.first = method.first;
  args.fixed = method.fixed;
  args.method = method.stepper;
  args.method.bounds = args.method.squares = args.method.floored = true;
  args.method.eps = element_size_ == 4 ? 1.1920929e-7 : 2.220446049250313e-16;
  complete(args.method);
  args.max_norm = plan.max_norm;
  args.factors = plan.factors.empty() ? nullptr : plan.factors.data();
  for (const PlanNode& node : plan.nodes) {
    const bool gaussian = node.law == Law::gaussian || node.law == Law::full_gaussian;
    const bool bounded =
        node.law == Law::gaussian || node.factor != kNothing || (!node.free && is_convex(node.law));
    args.method.bounds &= bounded && (node.weight > 0 || node.law == Law::none);
    args.method.squares &= gaussian || node.law == Law::none;
    args.method.floored &= has_floor(node.law, node.free) && node.weight >= 0;
  }
  if (const Tensor* progress = operands.find(method.progress))
    args.progress = static_cast<double*>(progress->data_ptr());
  if (const Tensor* outcome = operands.find(method.outcome))
    args.outcome = outcome->data_ptr();
  nodes_.resize(count);
  edges_.resize(plan.edges.size());
  args.node = nodes_.data();
  args.edge = edges_.data();
  for (int64_t l = 0; l < count; ++l) {
    const PlanNode& from = plan.nodes[l];
    ChainNode& node = nodes_[l];
    node.n = width(plan, operands, l);
    node.free = from.free;
    node.ordinal = args.free;
    args.free += from.free;
    node.predicted = from.law != Law::none;
    node.state = operands[from.state].data_ptr();
    node.velocity = from.velocity == kNothing ? nullptr : operands[from.velocity].data_ptr();
    node.kept = from.kept == kNothing ? nullptr : operands[from.kept].data_ptr();
    node.law = from.law;
    node.law_parameter = from.law_parameter;
    node.expression = &from.expression;
    node.weight = from.weight;
    node.rate = rate(from, node.n);
    if (const Tensor* theta = operands.find(from.theta); theta && from.law == Law::expression) {
      const bool each = theta->dim() == 2;
      node.theta = each ? keep(*theta).data_ptr() : row_of(keep(*theta), node.n);
      node.theta_stride = each ? node.n : 0;
    }
    if (const Tensor* weights = operands.find(from.sample_weights))
      node.sample_weights =
          pad(weights, args.batch, kernels.tiles[0]->samples); // of the widest tile
    const NodeStep& way = from.way;
    node.relative_rate = way.relative_rate;
    node.constrained = way.constrains();
    args.constrained |= node.constrained;
    node.shrink = way.shrink;
    node.towards = way.towards;
    node.low = way.low;
    node.high = way.high;
    if (const Tensor* known = operands.find(way.known)) {
      node.known = mask(*known);
      node.known_stride = known->size(0) == 1 ? 0 : node.n;
    }
    if (const Tensor* prior = operands.find(from.prior)) {
      node.prior = keep(*prior).data_ptr();
      node.prior_stride = prior->size(0) == 1 ? 0 : node.n;
    }
  }
  args.method.holds = args.constrained;
  args.method.bounds &= !args.constrained;
  std::map<std::tuple<int64_t, int64_t, double>, Tensor> scaled; // of edges that share them
  for (size_t e = 0; e < plan.edges.size(); ++e) {
    const PlanEdge& from = plan.edges[e];
    ChainEdge& edge = edges_[e];
    edge.source = from.source;
    edge.target = from.target;
    edge.skip = from.skip;
    if (const Tensor* given = operands.find(from.weight)) {
      auto at = scaled.find({from.weight, from.mask, from.scale});
      if (at == scaled.end())
        at = scaled
                 .emplace(std::tuple(from.weight, from.mask, from.scale),
                          this->scaled(*given, from.scale, operands.find(from.mask)))
                 .first;
      const Tensor& weight = at->second;
      weights_.push_back(from.transposed ? torch::stable::transpose(weight, 0, 1) : weight);
      if (from.first != kNothing)
        weights_.back() = placed(weights_.back(), static_cast<int64_t>(e));
    } else if (passes(from)) {
      weights_.push_back(placed(std::nullopt, static_cast<int64_t>(e)));
    } else {
      weights_.emplace_back();
    }
    nodes_[from.target].after = from.after;
    nodes_[from.target].feeds_back |= nodes_[from.source].free;
    nodes_[from.target].prediction_varies |= nodes_[from.source].free && !args.fixed;
    args.method.bounds &= from.source < from.target; // which a sweep downwards finds
  }
  join();
}

void PackedChain::join() {
  std::vector<std::vector<int64_t>> descending(nodes_.size());
  for (int64_t l = 0; l < args.nodes; ++l) {
    ChainNode& node = nodes_[l];
    int64_t last = l;
    std::vector<int64_t> in, out;
    std::vector<int64_t> moving[2], resting[2], away; // products, skips; of the latter those away
    std::vector<int64_t> swept, started[2], unstarted[2], starting[2];
    std::vector<Nonlinearity> befores;
    std::vector<std::vector<int64_t>> products; // by those
    const auto add = [&](std::vector<int64_t>(&to)[2], int64_t e) {
      if (weights_[e])
        to[0].push_back(e);
      if (edges_[e].skip != 0)
        to[1].push_back(e);
    };
    std::vector<const Tensor*> biases;
    for (int64_t e = 0; e < static_cast<int64_t>(edges_.size()); ++e) {
      const ChainEdge& edge = edges_[e];
      if (edge.target == l) {
        in.push_back(e);
        const bool rests = node.prediction_varies && !nodes_[edge.source].free;
        const bool sweeps = plan_.edges[e].sweeps;
        add(rests ? resting : moving, e);
        if (sweeps)
          swept.push_back(e);
        if (rests)
          add(sweeps ? started : unstarted, e);
        else if (sweeps)
          add(starting, e);
      }
      if (edge.source == l) {
        out.push_back(e);
        if (weights_[e]) {
          const Nonlinearity before = plan_.edges[e].before;
          const auto same = [&](const Nonlinearity& f) { return are_same(f, before); };
          const auto at = std::find_if(befores.begin(), befores.end(), same) - befores.begin();
          if (at == static_cast<int64_t>(befores.size())) {
            befores.push_back(before);
            products.emplace_back();
          }
          products[at].push_back(e);
          edges_[e].through = at - 1;
        }
        if (edge.skip != 0)
          away.push_back(e);
        last = std::max(last, edge.target);
      }
    }
    if (!in.empty())
      node.bias = bias(in, node.n);
    node.starts_by_some = swept.size() < in.size();
    if (node.starts_by_some && plan_.nodes[l].swept)
      node.start_bias = bias(swept, node.n);
    node.in = keep_numbers(std::move(in));
    node.out = keep_numbers(std::move(out));
    node.moving = {keep_numbers(std::move(moving[0])), keep_numbers(std::move(moving[1]))};
    node.resting = {keep_numbers(std::move(resting[0])), keep_numbers(std::move(resting[1]))};
    node.started = {keep_numbers(std::move(started[0])), keep_numbers(std::move(started[1]))};
    node.unstarted = {keep_numbers(std::move(unstarted[0])), keep_numbers(std::move(unstarted[1]))};
    node.starting = {keep_numbers(std::move(starting[0])), keep_numbers(std::move(starting[1]))};
    std::vector<Through> through;
    for (size_t k = 0; k < befores.size(); ++k) {
      const Numbers of = keep_numbers(std::move(products[k]));
      if (k > 0)
        through.push_back({befores[k], of});
      else
        node.before = befores[0], node.away.products = of;
    }
    node.away.skips = keep_numbers(std::move(away));
    node.throughs = static_cast<int64_t>(through.size());
    node.through = through_.emplace_back(std::move(through)).data();
    descending[last].push_back(l);
  }
  for (int64_t l = 0; l < args.nodes; ++l)
    nodes_[l].descending = keep_numbers(std::move(descending[l]));
}

Numbers PackedChain::keep_numbers(std::vector<int64_t> numbers) {
  const auto& kept = numbers_.emplace_back(std::move(numbers));
  return {kept.data(), static_cast<int64_t>(kept.size())};
}

const void* PackedChain::bias(const std::vector<int64_t>& edges, int64_t n) {
  const void* sum = nullptr;
  for (const int64_t e : edges) {
    const PlanEdge& edge = plan_.edges[e];
    const Tensor* const bias = operands_.find(edge.bias);
    if (!bias)
      continue;
    const void* const more = pad(&keep(scaled(*bias, edge.bias_scale)), n);
    if (sum)
      with_computed(dtype_of("bias", *bias), [&](auto zero) {
        using C = decltype(zero);
        for (int64_t i = 0; i < n; ++i)
          static_cast<C*>(const_cast<void*>(sum))[i] += static_cast<const C*>(more)[i];
      });
    else
      sum = more;
  }
  return sum ? sum : pad(nullptr, n);
}

void PackedChain::prepare(int64_t steps, bool sweeps, Learn learn) {
  args.steps = steps;
  args.learn = learn;
  args.has_stepper = plan_.method.has_stepper && steps > 0;
  if (args.outcome && steps == 0)
    std::memset(args.outcome, 0, static_cast<size_t>(args.batch * 2 * element_size_));
  for (int64_t l = 0; l < args.nodes; ++l)
    nodes_[l].swept = sweeps && plan_.nodes[l].swept;
  find_what_moves();
  args.moves = steps > 0;
  for (const ChainNode& node : nodes_)
    args.moves |= node.swept;
  // one by one, what has not had its turn in runs before is still where a sweep has set it
  const bool begins = !args.resume || args.update_order == UpdateOrder::one_by_one;
  if (sweeps && (plan_.method.settle || args.has_stepper) && begins)
    find_what_settles();
  std::vector<Product> products;
  const auto has_gram = [&](size_t e) {
    return plan_.edges[e].gram && steps > 0 && learn != Learn::before;
  };
  for (size_t e = 0; e < edges_.size(); ++e) {
    const ChainEdge& edge = edges_[e];
    const int64_t source = nodes_[edge.source].n, target = nodes_[edge.target].n;
    if (!weights_[e])
      continue;
    if (steps == 0)
      products.push_back({target, source});
    if (steps == 0 || !nodes_[edge.source].free)
      continue;
    products.push_back({source, has_gram(e) ? source : target});
    if (!has_gram(e) && !args.fixed)
      products.push_back({target, source});
  }
  tiling_ = choose(products);
  args.narrows = args.has_stepper && args.method.tol > 0 && !args.energies && !tiling_.together &&
                 tiling_.kind == TileKind::wide2;
  args.narrows &= !args.method.searches;
  args.narrows &= args.method.kind != StepperKind::sequential; // not all states move in every sweep
  for (const ChainNode& node : nodes_)
    args.narrows &= !node.sample_weights;
  const int64_t sweeps_made =
      steps * (args.has_stepper ? args.method.sweeps : updates_of_a_step(args));
  for (int64_t l = 0; l < args.nodes; ++l)
    if (plan_.nodes[l].law == Law::full_gaussian)
      nodes_[l].full_precision = pack(operands_[plan_.nodes[l].theta], false, sweeps_made + 1);
  for (int64_t l = 0; l < args.nodes; ++l)
    if (const Tensor* factor = operands_.find(plan_.nodes[l].factor); factor && args.has_stepper) {
      ChainNode& node = nodes_[l];
      const int64_t n = node.n;
      const auto* const data = static_cast<const char*>(factor->data_ptr());
      node.whitened = args.method.errors && args.method.measures;
      node.measure = pack(data, n, n, 1, n, sweeps_made);
      if (node.whitened)
        node.spread = pack(data, n, n, n, 1, sweeps_made);
      if (node.whitened)
        node.whiten = pack(data + n * n * element_size_, n, n, n, 1, 1);
    }
  for (size_t e = 0; e < edges_.size(); ++e) {
    ChainEdge& edge = edges_[e];
    const ChainNode &source = nodes_[edge.source], &target = nodes_[edge.target];
    if (!weights_[e])
      continue;
    const Tensor& weight = *weights_[e];
    if (has_gram(e))
      edge.gram = gram(weight, edge);
    const bool rests = target.prediction_varies && !source.free;
    const bool again = errs_by_product(args, target, false) && !edge.gram && !rests;
    if (!edge.gram || learn != Learn::never || target.swept)
      edge.weight = pack(weight, false, again ? sweeps_made + 1 : 1,
                         (rests ? target.resting : target.moving).products.count == 1);
    if (source.free && steps > 0)
      edge.transposed = pack(
          weight, true, edge.gram ? 1 : sweeps_made,
          (edge.through < 0 ? source.away.products : source.through[edge.through].products).count ==
              1);
  }
}

// An error is other than zero one step after the state or one of its sources has moved, and a state
// moves with its error or with that of a node it predicts.
void PackedChain::find_what_moves() {
  const auto after = [](int64_t step) { return step == kNever ? kNever : step + 1; };
  for (ChainNode& node : nodes_) {
    // the law does not pull it
    const bool rests = node.swept && !node.starts_by_some && is_of_distance(node.law);
    node.first_error = rests && !args.resume && !args.has_stepper ? kNever : 0;
    node.first_move = kNever;
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (ChainNode& node : nodes_) {
      const int64_t own = node.predicted ? node.first_error : kNever;
      int64_t fed = kNever, source = kNever;
      for (const int64_t e : node.out)
        fed = std::min(fed, nodes_[edges_[e].target].first_error);
      for (const int64_t e : node.in)
        source = std::min(source, nodes_[edges_[e].source].first_move);
      const int64_t moves = !node.free ? kNever : args.resume ? 0 : std::min(own, fed);
      const int64_t first_error = std::min(node.first_error, after(std::min(moves, source)));
      changed |= moves != node.first_move || first_error != node.first_error;
      node.first_move = moves;
      node.first_error = first_error;
    }
  }
}

void PackedChain::find_what_settles() {
  constexpr int64_t kAtATime = 32; // rows
  constexpr double kUnits = 8;     // of the last place, of the norms' product: measured up to 3.7
  const double eps = element_size_ == 4 ? 1.1920929e-7 : 2.220446049250313e-16;
  // Two rounded operands are off by up to 2^-8 together, and n products of them by about the norms'
  // product over the root of n: measured up to 4 times that, with the rounding of the sources, too.
  const auto bound = [&](int64_t n) {
    const double rounded =
        kernels.columns_at_once > 1 ? 0x1p-8 / std::sqrt(static_cast<double>(n)) : 0;
    return kUnits * (eps + rounded);
  };
  struct Piece {
    const ChainNode* node;
    int64_t first;
    char* out;
  };
  std::vector<Piece> pieces;
  for (int64_t l = 0; l < args.nodes; ++l) {
    ChainNode& node = nodes_[l];
    bool later = true; // than all that predicts it
    for (const int64_t e : node.in)
      later &= edges_[e].source < l;
    if (!node.free || node.swept || !node.in.count || !later)
      continue;
    char* const out = static_cast<char*>(const_cast<void*>(pad(nullptr, node.n)));
    node.rounding = out;
    for (int64_t i = 0; i < node.n; i += kAtATime)
      pieces.push_back({&node, i, out + i * element_size_});
  }
  const DType dtype = dtype_of("states", operands_[plan_.nodes.front().state]);
  share_out(static_cast<int64_t>(pieces.size()), 0, [&](void*, int64_t task) {
    const auto& [node, i, out] = pieces[task];
    const int64_t rows = std::min(kAtATime, node->n - i);
    with_computed(dtype, [&](auto zero) {
      using C = decltype(zero);
      C* const to = reinterpret_cast<C*>(out);
      C of_one[kAtATime];
      for (const int64_t e : node->in) { // norms of the rows of all matrices side by side
        const ChainEdge& edge = edges_[e];
        if (weights_[e]) {
          const Tensor& w = *weights_[e];
          const C* const from = static_cast<const C*>(w.data_ptr()) + i * w.stride(0);
          kernels.row_norms(from, rows, w.size(1), w.stride(0), w.stride(1), bound(w.size(1)),
                            of_one);
          for (int64_t r = 0; r < rows; ++r)
            to[r] = to[r] == 0 ? of_one[r] : std::sqrt(to[r] * to[r] + of_one[r] * of_one[r]);
        }
        if (edge.skip != 0) { // a source that settles takes with it what it predicts
          const auto by = static_cast<C>(bound(nodes_[edge.source].n) * std::abs(edge.skip));
          for (int64_t r = 0; r < rows; ++r)
            to[r] = std::sqrt(to[r] * to[r] + by * by);
        }
      }
    });
  });
}

const void* PackedChain::rate(const PlanNode& node, int64_t n) {
  // beyond the last element there must be no energy
  const bool weighted = is_elementwise(node.law) || is_rowwise(node.law);
  const bool resting = is_of_distance(node.law) || is_rowwise(node.law);
  if (!weighted || (node.theta == kNothing && node.weight == 1 && resting))
    return nullptr;
  const Tensor* const theta = node.law == Law::expression ? nullptr : operands_.find(node.theta);
  void* const p = const_cast<void*>(pad(nullptr, n));
  with_computed(dtype_of("states", operands_[plan_.nodes.front().state]), [&](auto zero) {
    using C = decltype(zero);
    const C* from = theta ? data<C>(keep(*theta)) : nullptr;
    const bool one = theta && theta->numel() == 1;
    for (int64_t i = 0; i < n; ++i)
      static_cast<C*>(p)[i] = static_cast<C>(
          from ? node.weight * std::exp(-static_cast<double>(from[one ? 0 : i])) : node.weight);
  });
  return p;
}

const void* PackedChain::row_of(const Tensor& t, int64_t n) {
  if (t.numel() == n)
    return t.data_ptr();
  void* const to = scratch(n);
  with_computed(dtype_of("theta", t), [&](auto zero) {
    std::fill_n(static_cast<decltype(zero)*>(to), n, *data<decltype(zero)>(t));
  });
  return to;
}

const void* PackedChain::mask(const Tensor& t) {
  const Tensor& from = keep(t);
  void* const to = scratch(from.numel());
  with_computed(dtype_of("states", operands_[plan_.nodes.front().state]), [&](auto zero) {
    const bool* const x = static_cast<const bool*>(from.data_ptr());
    for (int64_t i = 0; i < from.numel(); ++i)
      static_cast<decltype(zero)*>(to)[i] = x[i];
  });
  return to;
}

Tensor PackedChain::scaled(const Tensor& t, double scale, const Tensor* mask) {
  if (scale == 1 && !mask)
    return t;
  const Tensor& from = keep(t);
  const Tensor* const of = mask ? &keep(*mask) : nullptr;
  const Tensor result = allocate(from.sizes(), from);
  with_computed(dtype_of("states", from), [&](auto zero) {
    using C = decltype(zero);
    constexpr int64_t kAtATime = 1 << 15; // elements
    const C* const x = data<C>(from);
    const C* const m = of ? data<C>(*of) : nullptr;
    C* const y = static_cast<C*>(result.data_ptr());
    const int64_t count = from.numel();
    share_out(ceil_div(count, kAtATime), 0, [&](void*, int64_t task) {
      const int64_t end = std::min(count, (task + 1) * kAtATime);
      const C by = static_cast<C>(scale);
      for (int64_t i = task * kAtATime; i < end && !m; ++i)
        y[i] = by * x[i];
      for (int64_t i = task * kAtATime; i < end && m; ++i)
        y[i] = by * (m[i] * x[i]);
    });
  });
  return result;
}

Tensor PackedChain::placed(const std::optional<Tensor>& matrix, int64_t edge) const {
  const PlanEdge& of = plan_.edges[edge];
  const int64_t rows = nodes_[of.target].n, n = nodes_[of.source].n;
  const int64_t sizes[] = {rows, n}, at = of.first == kNothing ? 0 : of.first;
  const Tensor result = allocate(sizes, operands_[plan_.nodes.front().state]);
  with_computed(dtype_of("states", result), [&](auto zero) {
    using C = decltype(zero);
    C* const to = static_cast<C*>(result.data_ptr());
    std::fill(to, to + rows * n, C(0));
    for (int64_t i = 0; i < rows && !matrix; ++i)
      to[i * n + at + i] = static_cast<C>(of.scale);
    const C* const from = matrix ? static_cast<const C*>(matrix->data_ptr()) : nullptr;
    for (int64_t i = 0; i < rows && matrix; ++i)
      for (int64_t j = 0; j < matrix->size(1); ++j)
        to[i * n + at + j] = from[i * matrix->stride(0) + j * matrix->stride(1)];
  });
  return result;
}

// W^T P W [in, in], row by row of blocks of columns.
PackedMatrix PackedChain::gram(const Tensor& of, const ChainEdge& out) {
  const Tensor& weight = keep(of);
  const int64_t rows = weight.size(0), n = weight.size(1);
  const void* weighted = weight.data_ptr();
  if (const void* precision = nodes_[out.target].rate) {
    void* const scaled = scratch(rows * n);
    with_computed(dtype_of("weight", weight), [&](auto zero) {
      using C = decltype(zero);
      const C *w = data<C>(weight), *p = static_cast<const C*>(precision);
      for (int64_t i = 0; i < rows * n; ++i)
        static_cast<C*>(scaled)[i] = p[i / n] * w[i];
    });
    weighted = scaled;
  }
  void* const product = scratch(n * n);
  const void* const packed = pack_wide(weight.data_ptr(), n, rows, 1, n);
  pack_all();
  share_out(
      ceil_div(n, kernels.columns), kernels.panel * element_size_, [&](void* panel, int64_t task) {
        const int64_t j = task * kernels.columns;
        kernels.outer(packed, weighted, {}, rows, n, n, 1, j, std::min(n, j + kernels.columns),
                      panel, static_cast<char*>(product) + j * element_size_, n);
      });
  return {pack(tiles(), product, n, n, n, 1), tiles().packed_stride(n), tiling_.far};
}

const void* PackedChain::pack_wide(const void* matrix, int64_t rows, int64_t depth, int64_t row,
                                   int64_t column) {
  return pack(*kernels.tiles[static_cast<int>(TileKind::wide2)], matrix, rows, depth, row, column);
}

void PackedChain::pack_all() {
  share_out(
      static_cast<int64_t>(packing_.size()), 0,
      [&](void*, int64_t i) {
        const Packing& p = packing_[i];
        p.tiles.pack(p.from, p.rows, p.depth, p.row_stride, p.depth_stride, p.wanted, p.to);
      },
      [&](int64_t i) {
        const Packing& p = packing_[i];
        return static_cast<double>((p.wanted.end - p.wanted.begin) * p.depth);
      });
  packing_.clear();
}

void PackedChain::run() {
  pack_all();
  if (tiling_.together)
    return run_together();
  const TileKernels& kind = tiles();
  const int64_t size = kind.workspace_size(args);
  share_out(ceil_div(args.batch, kind.samples), size + kind.partial_size(1),
            [&](void* memory, int64_t tile) {
              kind.run(args, memory, static_cast<char*>(memory) + size, tile);
            });
}

void PackedChain::run_together() {
  const int64_t count = ceil_div(args.batch, tiles().samples);
  const int64_t size = tiles().workspace_size(args);
  // Samples do not interact, so that a large batch may take its turns.
  const int64_t most = std::clamp<int64_t>(kAtOnce / size, kTogether, count + kTogether);
  const Scratch workspaces(std::min(most, count) * size);
  for (int64_t first = 0; first < count; first += most)
    run_together(workspaces.as<char>(), size, first, std::min(most, count - first));
}

void PackedChain::run_together(char* workspaces, int64_t size, int64_t first, int64_t count) {
  const TileKernels& kind = tiles();
  const int64_t block = kind.block, groups = ceil_div(count, kTogether);
  const int64_t threads = torch::stable::get_num_threads();
  share_out(count, 0,
            [&](void*, int64_t tile) { kind.begin(args, workspaces + tile * size, first + tile); });
  const auto work = [&](Stage stage) {
    const int64_t rows = kind.rows(args, stage);
    // A few pieces for every thread, so that none waits long for another.
    const int64_t blocks = ceil_div(rows, block);
    const int64_t height = block * std::clamp<int64_t>(blocks * groups / (3 * threads), 1, 8);
    const int64_t pieces = ceil_div(rows, height);
    share_out(pieces * groups, kind.partial_size(kTogether), [&](void* partial, int64_t task) {
      const int64_t top = task % pieces * height, tile = task / pieces * kTogether;
      kind.stage(args, stage, {top, std::min(top + height, rows)}, workspaces + tile * size,
                 partial, first + tile, std::min(kTogether, count - tile));
    });
  };
  const auto all = [&](auto tells) {
    for (int64_t tile = 0; tile < count; ++tile)
      if (!tells(args, workspaces + tile * size, first + tile))
        return false;
    return true;
  };
  stages(args, work, [&](int64_t) { return all(kind.done); }, [&] { return all(kind.settled); });
  share_out(count, 0,
            [&](void*, int64_t tile) { kind.end(args, workspaces + tile * size, first + tile); });
}

void* PackedChain::scratch(int64_t elements) {
  return scratch_.emplace_back(elements * element_size_).as<void>();
}

const Tensor& PackedChain::keep(const Tensor& t) {
  return kept_.emplace_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
}

const void* PackedChain::pad(const Tensor* t, int64_t n, int64_t multiple) {
  const int64_t padded = ceil_div(n, multiple) * multiple;
  char* const copy = static_cast<char*>(scratch(padded));
  std::fill(copy, copy + padded * element_size_, 0);
  if (t) {
    const char* from = static_cast<const char*>(keep(*t).data_ptr());
    std::copy(from, from + n * element_size_, copy);
  }
  return copy;
}

PackedMatrix PackedChain::pack(const Tensor& matrix, bool transposed, int64_t reads, bool alone) {
  return pack(matrix.data_ptr(), matrix.size(transposed), matrix.size(!transposed),
              matrix.stride(transposed), matrix.stride(!transposed), reads, alone);
}

PackedMatrix PackedChain::pack(const void* data, int64_t rows, int64_t depth, int64_t row,
                               int64_t column, int64_t reads, bool alone) {
  const int64_t passes = reads * ceil_div(args.batch, tiles().samples);
  if (const PackedMatrix same = tiles().as_it_is(data, rows, row, column, passes); same && alone)
    return same;
  // edges may share their matrix
  PackedMatrix& packed = packed_[{data, rows, depth, row, column}];
  if (!packed)
    packed = {pack(tiles(), data, rows, depth, row, column), tiles().packed_stride(rows),
              tiling_.far};
  return packed;
}

const void* PackedChain::pack(const TileKernels& tiles, const void* matrix, int64_t rows,
                              int64_t depth, int64_t row, int64_t column) {
  void* const to = scratch(tiles.packed_size(rows, depth));
  for (int64_t i = 0; i < rows; i += kernels.panel_rows)
    packing_.push_back(
        {tiles, matrix, rows, depth, row, column, {i, std::min(i + kernels.panel_rows, rows)}, to});
  return to;
}

} // namespace pyromancy
