#include "../batches.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "packed_chain.h"

namespace pyromancy {
namespace {

// The gradients that a pass has found the errors for, and what rules do with them.
class Learner {
public:
  Learner(const Plan& plan, const Operands& operands, PackedChain& chain)
      : plan_(plan), operands_(operands), chain_(chain) {}

  // Asks the pass for what the targets need.
  void ask(bool of_states_before) {
    ChainArgs& args = chain_.args;
    for (const Target& target : plan_.targets) {
      ChainNode& node = args.node[node_of(target)];
      void*& wanted = target.what == Learned::logvar ? node.moment : node.delta;
      if (!wanted)
        wanted = chain_.scratch(args.batch * node.n);
      if (target.what != Learned::weight)
        continue;
      ChainNode& source = args.node[args.edge[target.owner].source];
      if (plan_.edges[target.owner].transposed)
        args.edge[target.owner].activated = chain_.scratch(args.batch * source.n);
      else if (of_states_before && source.free && !source.source)
        source.source = chain_.scratch(args.batch * source.n);
    }
  }

  // After the pass.
  void learn() {
    for (const Target& target : plan_.targets)
      add(target);
    chain_.pack_all();
    int64_t most = 0;
    for (const Task& t : tasks_)
      most = std::max(most, t.m * (t.end - t.begin));
    share_out(
        static_cast<int64_t>(tasks_.size()), (chain_.kernels.panel + 2 * most) * element_size_,
        [&](void* memory, int64_t i) { run(tasks_[i], static_cast<char*>(memory)); },
        [&](int64_t i) { // an element's rule takes as long as a product of about 32 samples
          const Task& t = tasks_[i];
          const double elements = static_cast<double>(t.m * (t.end - t.begin));
          const auto uses = static_cast<double>(parameters_[t.parameter].uses.size());
          return elements * (1 + uses * static_cast<double>(chain_.args.batch) / 32);
        });
  }

private:
  // Of a weight, whose gradient is -1/B a^T f(b), or of a bias or log-variances, which take the sum
  // of the rows of a [B, n].
  struct Use {
    const Target* target;
    const void *a, *b;
    Nonlinearity f;
    int64_t n;
    int64_t first = 0; // column of b that is the gradient's first
  };
  struct Parameter {
    LearnStep step;
    char* tensor; // the parameter, or where its gradient goes
    char* slots[kSlots];
    std::vector<Use> uses;
  };
  // Columns [begin, end) of a gradient [m, n], and what is done with it.
  struct Task {
    size_t parameter;
    int64_t m, n, begin, end;
  };

  int64_t node_of(const Target& target) const {
    return target.what == Learned::logvar ? target.owner : plan_.edges[target.owner].target;
  }

  void add(const Target& target) {
    const auto [at, first] = places_.emplace(target.tensor, parameters_.size());
    if (first)
      begin(target);
    parameters_[at->second].uses.push_back(use(target));
    if (!first)
      return;
    const Tensor& tensor = operands_[target.tensor];
    const bool matrix = target.what == Learned::weight;
    const int64_t m = matrix ? tensor.size(0) : 1, n = matrix ? tensor.size(1) : tensor.numel();
    // Parameters are moved by rows of these columns: short ones come slowly from memory.
    const int64_t panels = ceil_div(n, chain_.kernels.columns);
    const int64_t columns =
        chain_.kernels.columns * std::clamp<int64_t>(panels / (6 * threads_), 1, kMostPanels);
    for (int64_t j = 0; j < n; j += matrix ? columns : n)
      tasks_.push_back({at->second, m, n, j, matrix ? std::min(n, j + columns) : n});
  }

  void begin(const Target& target) {
    const Rule& rule = plan_.rules[target.rule];
    const Tensor& tensor = operands_[target.tensor];
    double steps = 1;
    if (counts_steps(rule.kind))
      with_computed(dtype_of("step", operands_[target.slots[0]]), [&](auto zero) {
        steps = *static_cast<decltype(zero)*>(operands_[target.slots[0]].data_ptr()) += 1;
      });
    Parameter p{{rule, steps}, static_cast<char*>(tensor.data_ptr()), {}, {}};
    for (int64_t s = 0; s < kSlots; ++s)
      if (const Tensor* slot = operands_.find(target.slots[s]))
        p.slots[s] = static_cast<char*>(slot->data_ptr());
    parameters_.push_back(std::move(p));
  }

  Use use(const Target& target) {
    ChainArgs& args = chain_.args;
    const ChainNode& node = args.node[node_of(target)];
    if (target.what != Learned::weight)
      return {
          &target, target.what == Learned::bias ? node.delta : node.moment, nullptr, {}, node.n};
    const ChainEdge& edge = args.edge[target.owner];
    const ChainNode& source = args.node[edge.source];
    const void* z = source.source ? source.source : source.state;
    // of delta^T f(z), or of f(z)^T delta
    const bool transposed = plan_.edges[target.owner].transposed;
    const int64_t first = std::max<int64_t>(0, plan_.edges[target.owner].first);
    const int64_t m = operands_[target.tensor].size(0), n = transposed ? node.n : source.n;
    const void* const rows =
        transposed ? static_cast<const char*>(edge.activated) + first * element_size_ : node.delta;
    const void*& packed = packed_[{rows, m}]; // edges may share it
    if (!packed)
      packed = chain_.pack_wide(rows, m, args.batch, 1, transposed ? source.n : m);
    const Nonlinearity f = transposed ? Nonlinearity{} : plan_.edges[target.owner].before;
    return {&target, packed, transposed ? node.delta : z, f, n, transposed ? 0 : first};
  }

  // The gradient goes through the thread's own memory, where it is still near when a rule takes it.
  void run(const Task& task, char* memory) const {
    const ChainKernels& kernels = chain_.kernels;
    const Parameter& p = parameters_[task.parameter];
    const int64_t columns = task.end - task.begin;
    const bool moves = p.step.rule.kind != RuleKind::gradient;
    char* const to = p.tensor + task.begin * element_size_;
    char* const own = memory + kernels.panel * element_size_;
    char* const gradient = moves ? own : to;
    char* const more = own + task.m * columns * element_size_;
    const int64_t stride = moves ? columns : task.n;
    find(task, p.uses.front(), memory, gradient, stride);
    for (size_t u = 1; u < p.uses.size(); ++u) {
      find(task, p.uses[u], memory, more, columns);
      rows(task, gradient, stride, more, columns, [](auto x, auto y) { return x + y; });
    }
    if (!moves)
      return;
    void* slots[kSlots];
    for (int64_t s = 0; s < kSlots; ++s)
      slots[s] = p.slots[s] ? p.slots[s] + task.begin * element_size_ : nullptr;
    kernels.learn(p.step, task.m, columns, gradient, to, slots, task.n);
  }

  // The gradient that one use has, in rows that are a stride apart.
  void find(const Task& task, const Use& use, char* panel, char* gradient, int64_t stride) const {
    const ChainKernels& kernels = chain_.kernels;
    const int64_t batch = chain_.args.batch;
    const double mean = batch ? 1.0 / static_cast<double>(batch) : 0;
    if (use.target->what == Learned::weight) {
      const PlanEdge& edge = plan_.edges[use.target->owner];
      kernels.outer(use.a, use.b, use.f, batch, task.m, use.n, -mean * edge.scale,
                    use.first + task.begin, use.first + task.end, panel, gradient, stride);
      if (const Tensor* mask = operands_.find(edge.mask)) {
        const Tensor m = mask->is_contiguous() ? *mask : torch::stable::contiguous(*mask);
        rows(task, gradient, stride,
             static_cast<const char*>(m.data_ptr()) + task.begin * element_size_, task.n,
             [](auto x, auto y) { return x * y; });
      }
    } else if (use.target->what == Learned::bias) {
      const double scale = -mean * plan_.edges[use.target->owner].bias_scale;
      kernels.sum_rows(use.a, batch, use.n, scale, gradient);
    } else {
      of_theta(use, operands_[use.target->tensor], gradient);
    }
  }

  // x = f(x, y), row by row
  template <class F>
  void rows(const Task& task, char* x, int64_t x_stride, const char* y, int64_t y_stride,
            F f) const {
    const int64_t columns = task.end - task.begin;
    with_computed(dtype_of("states", operands_[plan_.nodes.front().state]), [&](auto zero) {
      using C = decltype(zero);
      for (int64_t i = 0; i < task.m; ++i) {
        C* const to = reinterpret_cast<C*>(x) + i * x_stride;
        const C* const from = reinterpret_cast<const C*>(y) + i * y_stride;
        for (int64_t j = 0; j < columns; ++j)
          to[j] = f(to[j], from[j]);
      }
    });
  }

  // What the mean energy has of a node's theta beside the deviation: this times theta.
  double constant(const PlanNode& node) const {
    double weight = node.weight * normalizer(node.law);
    if (const Tensor* of = operands_.find(node.sample_weights))
      with_computed(dtype_of("sample weights", *of), [&](auto zero) {
        double total = 0;
        for (int64_t i = 0; i < of->size(0); ++i)
          total += static_cast<double>(
              static_cast<const decltype(zero)*>(of->data_ptr())[i * of->stride(0)]);
        weight *= total / static_cast<double>(std::max<int64_t>(1, of->size(0)));
      });
    return weight;
  }

  // Of E[deviation] + constant * theta, summed where one theta serves all.
  void of_theta(const Use& use, const Tensor& tensor, void* gradient) const {
    const PlanNode& node = plan_.nodes[use.target->owner];
    const double constant = this->constant(node);
    const int64_t batch = chain_.args.batch, n = use.n;
    const double mean = batch ? 1.0 / static_cast<double>(batch) : 0;
    const Scratch moments(n * element_size_);
    chain_.kernels.sum_rows(use.a, batch, n, mean, moments.as<void>());
    with_computed(dtype_of("logvar", tensor), [&](auto zero) {
      using C = decltype(zero);
      const C* moment = moments.as<C>();
      C* const to = static_cast<C*>(gradient);
      const bool one = tensor.numel() == 1 && n != 1;
      double total = 0;
      for (int64_t i = 0; i < n; ++i) {
        const double g = batch ? constant + static_cast<double>(moment[i]) : 0;
        total += g;
        if (!one)
          to[i] = static_cast<C>(g);
      }
      if (one)
        to[0] = static_cast<C>(total);
    });
  }

  static constexpr int64_t kMostPanels = 8;

  const Plan& plan_;
  const Operands& operands_;
  PackedChain& chain_;
  const int64_t threads_ = torch::stable::get_num_threads();
  const int64_t element_size_ = operands_[plan_.nodes.front().state].element_size();
  std::map<int64_t, size_t> places_; // of parameters, by their tensors
  std::map<std::pair<const void*, int64_t>, const void*> packed_;
  std::vector<Parameter> parameters_;
  std::vector<Task> tasks_;
};

// Some E-steps from step `first` on, and what weights learn of them.
void pass(const Plan& plan, const Operands& operands, int64_t first, int64_t steps, bool resume,
          Learn learn) {
  PackedChain chain(plan, operands);
  chain.args.resume = resume;
  if (const Tensor* energies = operands.find(plan.energies))
    chain.args.energies = static_cast<char*>(energies->data_ptr()) +
                          first * chain.args.nodes * chain.args.batch * energies->element_size();
  Learner learner(plan, operands, chain);
  if (learn != Learn::never)
    learner.ask(learn == Learn::before || plan.method.fixed);
  chain.prepare(steps, first == 0, learn);
  chain.run();
  if (const Tensor* diverged = operands.find(plan.diverged); diverged && chain.diverged)
    with_computed(dtype_of("diverged", *diverged),
                  [&](auto zero) { *static_cast<decltype(zero)*>(diverged->data_ptr()) = 1; });
  if (learn != Learn::never)
    learner.learn();
}

template <class C>
void set_one_hot(const int64_t* classes, const int64_t* rows, int64_t batch, int64_t n, C* to) {
  std::fill(to, to + batch * n, C(0));
  for (int64_t i = 0; i < batch; ++i)
    to[i * n + classes[rows[i]]] = C(1);
}

// All of them, before the first batch learns.
void check_classes(const Plan& plan, const Operands& operands) {
  for (size_t l = 0; l < plan.nodes.size(); ++l) {
    const Tensor* of = operands.find(plan.nodes[l].data);
    if (!of || !holds_classes(*of))
      continue;
    const int64_t n = width(plan, operands, static_cast<int64_t>(l));
    const auto* const classes = static_cast<const int64_t*>(of->data_ptr());
    for (int64_t i = 0; i < of->size(0); ++i)
      STD_TORCH_CHECK(classes[i] >= 0 && classes[i] < n, "data of node ", l,
                      " must be classes from 0 to ", n - 1, ", got ", classes[i], " in row ", i);
  }
}

// Rows of data into the states of one batch.
void gather(const Plan& plan, const Operands& operands, const int64_t* rows, int64_t batch) {
  for (const PlanNode& node : plan.nodes) {
    const Tensor* data = operands.find(node.data);
    if (!data)
      continue;
    if (holds_classes(*data)) {
      const Tensor& state = operands[node.state];
      with_computed(dtype_of("states", state), [&](auto zero) {
        set_one_hot(static_cast<const int64_t*>(data->data_ptr()), rows, batch, state.size(1),
                    static_cast<decltype(zero)*>(state.data_ptr()));
      });
      continue;
    }
    const int64_t bytes = data->size(1) * data->element_size();
    char* const to = static_cast<char*>(operands[node.state].data_ptr());
    const char* const from = static_cast<const char*>(data->data_ptr());
    for (int64_t i = 0; i < batch; ++i)
      std::memcpy(to + i * bytes, from + rows[i] * bytes, bytes);
  }
}

void run_plan_(const Tensors& written, const Tensors& read, const std::vector<int64_t>& ints,
               const std::vector<double>& numbers) {
  const Operands operands(written, read);
  Plan plan = decode(ints, numbers, operands);
  const Tensor* order = operands.find(plan.order);
  if (order)
    check_classes(plan, operands);
  const int64_t* rows = order ? data<const int64_t>(*order) : nullptr;
  run_batches(
      plan, operands, rows,
      [&](int64_t first, int64_t batch) { gather(plan, operands, rows + first, batch); },
      [&](int64_t first, int64_t steps, bool resume, Learn learn) {
        pass(plan, operands, first, steps, resume, learn);
      });
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CPU, m) {
  m.impl("run_plan_", TORCH_BOX(&run_plan_));
}

} // namespace
} // namespace pyromancy
