// MPELU over whole tensors: cuts them into items for the threads and adds up what the items summed.
//
// A dense tensor is (outer, channels, inner): NCHW has inner = H * W, channels_last and (N, C) have inner = 1, and with
// one shared pair of parameters all elements are one inner. The cut depends on the shape alone and the sums of the
// items are added in order, so that results do not depend on the number of threads.

#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace {

using Index = std::int64_t;

// In elements. Measured on one core of a Sapphire Rapids, float32 backward; what is not said made no difference.
constexpr Index kPlaneItem = 4096;           // 2 ms for 2^22 elements, 1024 took 2.3
constexpr Index kRowsItem = 65536;           // at least one row
constexpr Index kShortestRow = 64;          // shorter ones are joined: 1.18 ms for 131072 x 16, unjoined 1.44
constexpr Index kElementsPerThread = 32768;  // some 20 us: a thread for less costs more time than it saves

// Bytes of a gradient, for each thread, from which on it is written past the caches, which it would leave anyway before it
// is read. The backward pass then takes up to a quarter less time, and a step of NIN 1 % less (batches of 16 to 64, one
// thread). With gradients of up to 2 MB steps took 1 to 5 % longer, and with y written so up to 2 %, even if large.
constexpr Index kWrittenPastCache = Index{1} << 23;

struct Shape {
  Index outer, channels, inner;

  // A plane pays 15 ns for its constants and sums. Where that is more than to spread the parameters over one row, the
  // elements of a plane are columns (Sapphire Rapids, planes of 49: 0.9 instead of 1.3 ns per element, backward).
  bool has_short_planes() const { return inner < 64 && inner < 8 * outer; }
};

template <class T>
struct Operands {
  Kernels<T> kernels;
  Shape shape;
  const Compute<T>*alpha, *beta;
  int threads;

  bool is_written_past_cache() const {
    Index bytes = static_cast<Index>(sizeof(T)) * shape.outer * shape.channels * shape.inner;
    return bytes >= kWrittenPastCache * threads;
  }
};

Index divide_up(Index a, Index b) { return (a + b - 1) / b; }

// Makes what this thread has written past the caches visible to others.
inline void finish_stores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class Function>
void for_each_item(Index items, Shape shape, int threads, Function function) {
  Index useful = shape.outer * shape.channels * shape.inner / kElementsPerThread;
  threads = std::min<Index>({threads, items, useful});
  if (threads <= 1) {
    for (Index item = 0; item < items; ++item) function(item);
    return finish_stores();
  }
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static) nowait
    for (Index item = 0; item < items; ++item) function(item);
    finish_stores();
  }
}

// Calls function(number, channel, offset, size) for all pieces of planes; an item is one piece or several short planes.
// The last ones may come first.
template <bool from_the_end = false, class Function>
void for_each_piece(Shape shape, int threads, Function function) {
  Index planes = shape.outer * shape.channels, pieces = divide_up(shape.inner, kPlaneItem);
  Index together = std::max<Index>(1, kPlaneItem / shape.inner);
  Index items = divide_up(planes * pieces, together);
  for_each_item(items, shape, threads, [&](Index item) {
    Index first = (from_the_end ? items - 1 - item : item) * together, end = std::min(first + together, planes * pieces);
    Index plane = first / pieces, start = first % pieces * kPlaneItem, channel = plane % shape.channels;
    for (Index number = first; number < end; ++number, ++plane) {
      function(number, channel, plane * shape.inner + start, std::min(kPlaneItem, shape.inner - start));
      if (++channel == shape.channels) channel = 0;
    }
  });
}

template <class T>
void forward_planes(Operands<T> operands, const T* x, T* y) {
  for_each_piece(operands.shape, operands.threads, [&](Index, Index channel, Index offset, Index size) {
    operands.kernels.forward_plane(x + offset, y + offset, size, operands.alpha[channel], operands.beta[channel]);
  });
}

template <class T>
void backward_planes(Backward<T> kernels, Operands<T> operands, const T* grad, const T* x, T* grad_x, Totals totals) {
  auto [outer, channels, inner] = operands.shape;
  Index pieces = divide_up(inner, kPlaneItem);
  std::vector<double> sums(2 * outer * channels * pieces);
  for_each_piece(operands.shape, operands.threads, [&](Index number, Index channel, Index offset, Index size) {
    kernels.plane(grad + offset, x + offset, grad_x + offset, size, operands.alpha[channel], operands.beta[channel],
                  {&sums[2 * number], &sums[2 * number + 1]}, operands.is_written_past_cache());
  });
  const double* sum = sums.data();
  for (Index i = 0; i < outer; ++i)
    for (Index channel = 0; channel < channels; ++channel)
      for (Index piece = 0; piece < pieces; ++piece) {
        totals.alpha[channel] += *sum++;
        totals.beta[channel] += *sum++;
      }
}

// An item of rows is a block of a matrix, whose rows are one or more outer indices and whose columns have parameters of
// their own. Where several outer indices make a row, what is left of them is one more, shorter row and item.
struct Rows {
  // So many periods fill registers without a rest, if they are not long anyway.
  static Index joined(Index period) {
    Index full = period < 4 * kShortestRow ? kPadding / std::gcd(period, kPadding) : 1;
    return full * std::max<Index>(1, kShortestRow / (full * period));
  }

  Shape shape;
  Index period = shape.channels * shape.inner;
  Index repeats = std::clamp<Index>(joined(period), 1, shape.outer);
  Index columns = repeats * period, rows = shape.outer / repeats, left_over = shape.outer % repeats * period;
  Index rows_per_item = std::max<Index>(1, kRowsItem / std::min(columns, kBlockColumns));
  Index across = divide_up(columns, kBlockColumns), down = divide_up(rows, rows_per_item) + (left_over > 0);

  struct Block {
    Index index, row, column, rows, columns;
  };

  Block block(Index item) const {
    Index index = item / across, row = std::min(rows, index * rows_per_item), column = item % across * kBlockColumns;
    if (row == rows) return {index, row, column, 1, left_over};
    return {index, row, column, std::min(rows_per_item, rows - row), std::min(kBlockColumns, columns - column)};
  }
};

// The parameters of one row.
template <class C>
class Spread {
  Index size;
  std::vector<C> values;

 public:
  Spread(const Rows& rows, const C* alpha, const C* beta) : size(rows.columns + kPadding), values(5 * size) {
    for (Index channel = 0; channel < rows.shape.channels; ++channel) {
      auto [head, tail] = rate_of(beta[channel]);
      const C of_channel[] = {alpha[channel], beta[channel], floor_of(beta[channel]), head, tail};
      for (int which = 0; which < 5; ++which)
        for (Index repeat = 0; repeat < rows.repeats; ++repeat)
          std::fill_n(&values[which * size + (repeat * rows.shape.channels + channel) * rows.shape.inner],
                      rows.shape.inner, of_channel[which]);
    }
  }
  Parameters<C> from(Index column) const {
    const C* first = &values[column];
    return {first, first + size, first + 2 * size, first + 3 * size, first + 4 * size};
  }
};

template <class T>
void forward_rows(Operands<T> operands, const T* x, T* y) {
  Rows rows{operands.shape};
  Spread<Compute<T>> spread(rows, operands.alpha, operands.beta);
  for_each_item(rows.across * rows.down, operands.shape, operands.threads, [&](Index item) {
    Rows::Block block = rows.block(item);
    Index offset = block.row * rows.columns + block.column;
    operands.kernels.forward_rows(x + offset, y + offset, block.rows, block.columns, rows.columns,
                                  spread.from(block.column));
  });
}

template <class T>
void backward_rows(Backward<T> kernels, Operands<T> operands, const T* grad, const T* x, T* grad_x, Totals totals) {
  Rows rows{operands.shape};
  Spread<Compute<T>> spread(rows, operands.alpha, operands.beta);
  std::vector<double> sums(2 * rows.down * rows.columns);
  for_each_item(rows.across * rows.down, operands.shape, operands.threads, [&](Index item) {
    Rows::Block block = rows.block(item);
    Index offset = block.row * rows.columns + block.column;
    double* sum = &sums[2 * block.index * rows.columns + block.column];
    kernels.rows(grad + offset, x + offset, grad_x + offset, block.rows, block.columns, rows.columns,
                 spread.from(block.column), {sum, sum + rows.columns},
                 operands.is_written_past_cache());
  });
  for (Index i = 1; i < rows.down; ++i)
    for (Index j = 0; j < 2 * rows.columns; ++j) sums[j] += sums[2 * i * rows.columns + j];
  const double* sum = sums.data();
  for (double* total : {totals.alpha, totals.beta})
    for (Index repeat = 0; repeat < rows.repeats; ++repeat)
      for (Index channel = 0; channel < rows.shape.channels; ++channel)
        for (Index i = 0; i < rows.shape.inner; ++i) total[channel] += *sum++;
}

template <class T>
void forward(Operands<T> operands, const T* x, T* y) {
  (operands.shape.has_short_planes() ? forward_rows<T> : forward_planes<T>)(operands, x, y);
}

template <class T>
void backward(Backward<T> kernels, Operands<T> operands, const T* grad, const T* x, T* grad_x,
              Compute<T>* grad_alpha, Compute<T>* grad_beta) {
  Index channels = operands.shape.channels;
  std::vector<double> sums(2 * channels);
  Totals totals{sums.data(), sums.data() + channels};
  auto function = operands.shape.has_short_planes() ? backward_rows<T> : backward_planes<T>;
  function(kernels, operands, grad, x, grad_x, totals);
  for (Index channel = 0; channel < channels; ++channel) {
    grad_alpha[channel] = totals.alpha[channel];
    grad_beta[channel] = operands.alpha[channel] * totals.beta[channel];
  }
}

}  // namespace
