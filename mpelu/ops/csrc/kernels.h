// What one instruction set offers: loops over contiguous memory, without threads, allocation or the standard library.
#pragma once

#include <cstdint>
#include <cstring>

struct BFloat16 {
  std::uint16_t bits;
};

struct Half {
  std::uint16_t bits;
};

// Arithmetic is float, for double double.
template <class T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <class T>
using Compute = typename Arithmetic<T>::type;

// The parameters of a row, element by element.
template <class C>
struct Parameters {
  const C *alpha, *beta, *floor, *head, *tail;
};

// The smallest x to compute with. Below, exp(beta x) counts as 0 (for beta < 0 as infinite), and -inf would give NaN.
template <class C>
static inline C floor_of(C beta) {
  constexpr bool single = sizeof(C) == sizeof(float);
  constexpr C underflow = single ? 88.0 : 709.1, overflow = single ? 89.0 : 710.0;
  constexpr C largest = single ? 0x1.fffffep127 : 0x1.fffffffffffffp1023;
  C bound = beta < 0 ? overflow / -beta : underflow / (beta + 0);  // -0 + 0 is 0
  return bound < largest ? -bound : -largest;
}

// beta log2(e) in two parts. The head has 12 bits, so that its products with numbers of a half type are exact.
template <class C>
struct Rate {
  C head, tail;
};
template <class C>
static inline Rate<C> rate_of(C beta) {
  double rate = beta * 0x1.71547652b82fep+0;
  C head = rate;
  if constexpr (sizeof(C) == sizeof(float)) {
    std::uint32_t bits;
    std::memcpy(&bits, &head, sizeof bits);
    bits &= 0xfffff000;
    std::memcpy(&head, &bits, sizeof bits);
    if (head - head != 0) return {beta, 0};  // NaN, or too large: exp(beta x) is 0 or infinite for every x but 0
  }
  return {head, static_cast<C>(rate - head)};
}

struct Totals {
  double *alpha, *beta;
};

constexpr std::int64_t kBlockColumns = 1024;  // parameters and sums of a block: 20 KiB of the first cache
constexpr std::int64_t kPadding = 16;         // elements of a full register

// Where x <= 0, the sum of grad * (exp(beta x) - 1) and of grad * x * exp(beta x): one number each for a plane, one for
// every column of rows.
template <class T>
struct Backward {
  using C = Compute<T>;

  // past_cache: write grad_x to memory without loading its lines into the caches first, where that can be done; it is up
  // to the caller that other threads see it
  void (*plane)(const T* grad, const T* x, T* grad_x, std::int64_t size, C alpha, C beta, Totals totals,
                bool past_cache);
  void (*rows)(const T* grad, const T* x, T* grad_x, std::int64_t rows, std::int64_t columns, std::int64_t stride,
               Parameters<C> parameters, Totals totals, bool past_cache);
};

// What statistics need of a tensor x: sums, and the sum of squares in one number. Sums are one number for a plane and
// one for every column of rows. `products` gives those of all pairs of `count` examples, which lie `stride` elements apart,
// a multiple of kPadding, with zeros up to there; only found[i * count + j] with j <= i is written.
template <class T>
struct Moments {
  void (*plane)(const T* x, std::int64_t size, double* sum, double* squares);
  void (*rows)(const T* x, std::int64_t rows, std::int64_t columns, std::int64_t stride, double* sums, double* squares);
  void (*products)(const T* x, std::int64_t count, std::int64_t stride, double* found);
};

// A plane has one alpha and one beta. Rows lie `stride` elements apart, at most kBlockColumns of them wide, and have
// parameters of their own in every column, which can be read up to the next full register.
template <class T>
struct Kernels {
  using Element = T;
  using C = Compute<T>;

  void (*forward_plane)(const T* x, T* y, std::int64_t size, C alpha, C beta);
  void (*forward_rows)(const T* x, T* y, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                       Parameters<C> parameters);
  Backward<T> backward;
  Backward<T> backward_from_output;  // given y for x; right where alpha beta > 0
  Moments<T> moments;
};

struct InstructionSet {
  Kernels<float> float32;
  Kernels<double> float64;
  Kernels<BFloat16> bfloat16;
  Kernels<Half> float16;
};
