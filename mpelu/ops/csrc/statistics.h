// Statistics of tensors: the mean square with the mean of each channel, in one pass, and products of examples.

#pragma once

#include <cmath>
#include <vector>

#include "tensors.h"

namespace {

// Small planes are summed as columns. 2^18 floats in 16 rows take 0.11 ns each so; as planes of 64 they take 0.23, of 128
// 0.13 and of 256 0.09. In 4 rows it is 0.25, as what is summed of a column is written out (one core, Sapphire Rapids).
constexpr Index kShortPlane = 128, kShortestPlane = 32, kManyRows = 8;

// Tensors are read from the end: what was written last is still in the cache, and what is read last will be when the next
// operator begins with it. For 2^20 floats behind a convolution 0.19 instead of 0.23 ms, and the next one took 0.22 instead
// of 0.32 (Sapphire Rapids).

template <class T>
double squares_by_plane(Kernels<T> kernels, Shape shape, int threads, const T* x, double* sums) {
  Index pieces = divide_up(shape.inner, kPlaneItem), count = shape.outer * shape.channels * pieces;
  std::vector<double> found(2 * count);
  for_each_piece<true>(shape, threads, [&](Index number, Index, Index offset, Index size) {
    kernels.moments.plane(x + offset, size, &found[2 * number], &found[2 * number + 1]);
  });
  double squares = 0;
  for (Index number = 0; number < count; ++number) {
    sums[number / pieces % shape.channels] += found[2 * number];
    squares += found[2 * number + 1];
  }
  return squares;
}

template <class T>
double squares_by_row(Kernels<T> kernels, Shape shape, int threads, const T* x, double* sums) {
  Rows rows{shape};
  Index items = rows.across * rows.down;
  std::vector<double> of_column(rows.down * rows.columns), of_item(items);
  for_each_item(items, shape, threads, [&](Index item) {
    Rows::Block block = rows.block(item = items - 1 - item);
    kernels.moments.rows(x + block.row * rows.columns + block.column, block.rows, block.columns, rows.columns,
                         &of_column[block.index * rows.columns + block.column], &of_item[item]);
  });
  const double* sum = of_column.data();
  for (Index row = 0; row < rows.down * rows.repeats; ++row)
    for (Index channel = 0; channel < shape.channels; ++channel)
      for (Index i = 0; i < shape.inner; ++i) sums[channel] += *sum++;
  double squares = 0;
  for (double own : of_item) squares += own;
  return squares;
}

struct Found {
  double square, mean, variance;  // the variance is that of the means of channels
};

template <class T>
Found moments(Kernels<T> kernels, Shape shape, int threads, const T* x) {
  bool by_row = shape.inner < kShortestPlane || (shape.inner <= kShortPlane && shape.outer >= kManyRows);
  std::vector<double> sums(shape.channels);
  double squares = (by_row ? squares_by_row<T> : squares_by_plane<T>)(kernels, shape, threads, x, sums.data());
  double of_channel = shape.outer * shape.inner, mean = 0, variance = 0;
  for (double sum : sums) mean += sum / of_channel / shape.channels;
  for (double sum : sums) variance += (sum / of_channel - mean) * (sum / of_channel - mean) / shape.channels;
  return {squares / (of_channel * shape.channels), mean, variance};
}

// Points beside those of x: steps are the given share of |x| + m, m the mean of |x| in the channel, `least` at least.
template <class C>
void step_aside(Shape shape, C share, C least, const C* x, C* steps, C* beside) {
  std::vector<double> means(shape.channels);
  auto for_each_row = [&](auto function) {
    for (Index row = 0; row < shape.outer * shape.channels; ++row) function(row % shape.channels, row * shape.inner);
  };
  for_each_row([&](Index channel, Index start) {
    double sum = 0;
    for (Index i = start; i < start + shape.inner; ++i) sum += std::abs(x[i]);
    means[channel] += sum / (shape.outer * shape.inner);
  });
  for_each_row([&](Index channel, Index start) {
    C mean = means[channel];
    for (Index i = start; i < start + shape.inner; ++i) {
      C step = (std::abs(x[i]) + mean) * share;
      steps[i] = step < least ? least : step;
      beside[i] = x[i] + steps[i];
    }
  });
}

struct Shares {
  double dead, flat;
};

// The share of channels whose slopes (beside - y) / steps are all 0, and of slopes below `little` of the steepest one; a
// channel with a slope that is not finite is never the steepest. The slopes take the place of `beside`.
template <class C>
Shares shares(Shape shape, C little, const C* y, const C* steps, C* beside) {
  Index size = shape.outer * shape.channels * shape.inner, dead = 0, flat = 0;
  std::vector<C> largest(shape.channels);
  for (Index start = 0, channel = 0; start < size; start += shape.inner) {
    C most = largest[channel];
    for (Index i = start; i < start + shape.inner; ++i) {
      C slope = beside[i] = std::abs(beside[i] - y[i]) / steps[i];
      most = slope <= most || most != most ? most : slope;  // NaN stays
    }
    largest[channel] = most;
    if (++channel == shape.channels) channel = 0;
  }
  C steepest = 0;
  for (C own : largest) {
    dead += own == 0;
    if (own - own == 0 && own > steepest) steepest = own;
  }
  for (Index i = 0; i < size; ++i) flat += beside[i] < little * steepest;
  return {double(dead) / shape.channels, steepest == 0 ? 1.0 : double(flat) / size};
}

// A tensor of any strides; the first dimension is that of the examples.
struct View {
  std::vector<Index> sizes, strides;

  Index entries() const {
    Index count = 1;
    for (std::size_t dim = 1; dim < sizes.size(); ++dim) count *= sizes[dim];
    return count;
  }
};

template <class T>
T* copy(const View& view, std::size_t dim, const T* from, T* to) {
  if (dim == view.sizes.size()) {
    *to = *from;
    return to + 1;
  }
  bool last = dim + 1 == view.sizes.size();
  for (Index i = 0; i < view.sizes[dim]; ++i, from += view.strides[dim]) {
    if (last)
      *to++ = *from;
    else
      to = copy(view, dim + 1, from, to);
  }
  return to;
}

// found: for n examples n^2 numbers, symmetric.
template <class T>
void products(Kernels<T> kernels, const View& view, const T* x, double* found) {
  Index count = view.sizes[0], stride = divide_up(view.entries(), kPadding) * kPadding;
  std::vector<T> rows(count * stride);  // zeros behind the entries of an example
  for (Index row = 0; row < count; ++row) copy(view, 1, x + row * view.strides[0], &rows[row * stride]);
  kernels.moments.products(rows.data(), count, stride, found);
  for (Index i = 0; i < count; ++i)
    for (Index j = 0; j < i; ++j) found[j * count + i] = found[i * count + j];
}

}  // namespace
