// MPELU over contiguous memory, compiled once for each instruction set.
//
// With t = beta x, n = round(t / ln 2), r = t - n ln 2, s = 2^n and p = exp(r) - 1, one polynomial gives both
// exp(t) - 1 = s p + (s - 1) and exp(t) = s p + s. Half types compute in base 2, where n is subtracted exactly.

#include <type_traits>

#include "kernels.h"
#include "lanes.h"

namespace {

// q(r) = (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2, highest power first: minimax in the relative error of exp(r) - 1.
constexpr float kFloatTerms[] = {0x1.a124f2p-13f, 0x1.6d4324p-10f, 0x1.1110e0p-7f,
                                 0x1.5554eap-5f,  0x1.555556p-3f,  0.5f};                         // 2^-30.9
constexpr double kDoubleTerms[] = {0x1.1f730349868cep-29, 0x1.af4de97ca4194p-26, 0x1.27e4db646b17ep-22,
                                   0x1.71de0231960ebp-19, 0x1.a01a01a6d889cp-16, 0x1.a01a01abe7fe1p-13,
                                   0x1.6c16c16c162d4p-10, 0x1.11111111100dcp-7,  0x1.5555555555556p-5,
                                   0x1.5555555555557p-3,  0.5};  // 2^-60.0
// (2^f - 1) / f for |f| <= 1/2, likewise. What is only rounded to a half type needs fewer terms than what is summed.
constexpr float kHalfTerms[] = {0x1.5d6022p-10f, 0x1.3cbc60p-7f, 0x1.c6b2e8p-5f, 0x1.ebfa56p-3f,
                                0x1.62e42ep-1f};  // 2^-21.1
constexpr float kHalfSumTerms[] = {0x1.42a342p-13f, 0x1.5ef176p-10f, 0x1.3b2c32p-7f,
                                   0x1.c6afa4p-5f,  0x1.ebfbdep-3f,  0x1.62e430p-1f};  // 2^-26.2

template <class C>
struct Constants {
  static constexpr C largest = 0x1.fffffep127f;
  static constexpr C largest_power = 127.0f;
  static constexpr C log2_e = 0x1.715476p+0f;
  static constexpr C rounder = 0x1.8p23f + 127;  // t + rounder - rounder is t rounded to an integer
  static constexpr C ln2_head = 0x1.62e4p-1f, ln2_tail = 0x1.7f7d1cp-20f;  // n * ln2_head is exact
};
template <>
struct Constants<double> {
  static constexpr double largest = 0x1.fffffffffffffp1023;
  static constexpr double largest_power = 1023.0;
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  static constexpr double rounder = 0x1.8p52 + 1023;
  static constexpr double ln2_head = 0x1.62e42fee00000p-1, ln2_tail = 0x1.a39ef35793c76p-33;
};

template <class C, int size>
inline Lanes<C> horner(const C (&terms)[size], Lanes<C> r) {
  Lanes<C> q = broadcast(terms[0]);
  for (int i = 1; i < size; ++i) q = fma(q, r, broadcast(terms[i]));
  return q;
}

template <class C>
struct Exponential {
  Lanes<C> exp, expm1, s, p;
};

template <class C>
struct Channel {
  Lanes<C> alpha, beta, floor, head, tail;
};

template <class C>
inline Channel<C> channel_of(C alpha, C beta) {
  auto [head, tail] = rate_of(beta);
  return {broadcast(alpha), broadcast(beta), broadcast(floor_of(beta)), broadcast(head), broadcast(tail)};
}

template <class T, bool summed, class C = Compute<T>>
inline Exponential<C> exponential(Lanes<C> x, Channel<C> channel) {
  using K = Constants<C>;
  using V = Lanes<C>;
  // n stays below the overflow of s, and p grows where exp(t) overflows: infinity without a NaN
  auto bounded = [](V shifted) { return min(broadcast(K::rounder + K::largest_power), shifted); };
  V shifted, p;
  if constexpr (sizeof(T) == 2) {
    shifted = bounded(fma(x, channel.head, broadcast(K::rounder)));
    V f = fma(x, channel.tail, fma(x, channel.head, K::rounder - shifted));
    if constexpr (summed)
      p = f * horner(kHalfSumTerms, f);
    else
      p = f * horner(kHalfTerms, f);
  } else {  // exp keeps its accuracy only if the rounding of beta * x is carried along
    V t = channel.beta * x;
    shifted = bounded(fma(t, broadcast(K::log2_e), broadcast(K::rounder)));
    V n = shifted - K::rounder;
    V head = fma(n, broadcast(-K::ln2_head), t);
    V tail = fma(n, broadcast(-K::ln2_tail), product_error(channel.beta, x, t));
    V r = head + tail;  // head is exact, and for n = 0 tail is only what rounding beta * x took away
    if constexpr (sizeof(T) == 4)
      p = head + fma(r * r, horner(kFloatTerms, r), tail);
    else
      p = head + fma(r * r, horner(kDoubleTerms, r), tail);
  }
  V s = power_of_two(shifted);
  return {fma(s, p, s), fma(s, p, s - C(1)), s, p};
}

template <class T, class C>
inline Lanes<C> activate(Lanes<C> x, Channel<C> channel) {
  Lanes<C> expm1 = exponential<T, false>(max(channel.floor, x), channel).expm1;
  return select(negative(x), channel.alpha * expm1, x);
}

template <class C>
struct Sums {
  Lanes<C> alpha, beta;
};

// p(f) = (log(1 + f) - f + f^2 / 2) / f^3 for 1 + f in [sqrt(1/2), sqrt(2)]: minimax in the relative error of the log.
constexpr float kLogTerms[] = {0x1.1457aep-4f, -0x1.de3c22p-4f, 0x1.e6f06ep-4f, -0x1.fc2206p-4f, 0x1.233768p-3f,
                               -0x1.555c4ep-3f, 0x1.99a4b6p-3f, -0x1.000006p-2f, 0x1.555548p-2f};  // 2^-30.3

// log(1 + w) from w and u = 1 + w as rounded; about -88 for w = -1. Beside 1 what rounding u took away would be lost; far
// from 1 it is no more than what y has lost already.
inline Floats log1p(Floats w, Floats u) {
  Ints bits = as<Ints>(u), exponent = (bits - 0x3f3504f3) >> 23;  // u / 2^exponent is in [sqrt(1/2), sqrt(2)]
  Floats f = as<Floats>(bits - (exponent << 23)) - 1.0f;
  f = exponent == 0 ? w : f;
  Floats tail = fma(f * f * f, horner(kLogTerms, f), f * f * -0.5f);
  return fma(__builtin_convertvector(exponent, Floats), broadcast(0x1.62e43p-1f), f + tail);
}
inline Doubles log1p(Doubles w, Doubles) {
  for (int i = 0; i < kLanes<double>; ++i) w[i] = __builtin_log1p(w[i]);
  return w;
}

// 1 / divisor without overflow, even of subnormal numbers, for products with x * scale. A division of each x would take
// a quarter of the backward pass.
template <class C>
struct Reciprocal {
  Lanes<C> scale, scaled_divisor, inverse;
  explicit Reciprocal(Lanes<C> divisor) {
    constexpr bool single = sizeof(C) == sizeof(float);
    auto is_tiny = max(divisor, -divisor) < C(single ? 0x1p-100 : 0x1p-900);
    scale = is_tiny ? broadcast(C(single ? 0x1p24 : 0x1p53)) : broadcast(C(1));
    scaled_divisor = divisor * scale;
    inverse = C(1) / scaled_divisor;
  }
};

// dividend / divisor, rounded once where multiplication and addition are; infinite only on the positive side.
template <class C>
inline Lanes<C> divide(Lanes<C> dividend, Reciprocal<C> by) {
  if constexpr (!kFused) return dividend * by.scale / by.scaled_divisor;
  Lanes<C> scaled = dividend * by.scale, rough = min(broadcast(Constants<C>::largest), scaled * by.inverse);
  return fma(fma(-rough, by.scaled_divisor, scaled), by.inverse, rough);
}

template <class T, bool from_output, class C>
inline Lanes<C> differentiate(Lanes<C> grad, Lanes<C> x, Channel<C> channel, Sums<C>& sums) {
  auto mask = negative(x);
  Lanes<C> largest = broadcast(Constants<C>::largest), bounded;
  Exponential<C> found{};
  if constexpr (from_output) {  // x is y here: where it is not positive, exp(beta x) - 1 = y / alpha
    Reciprocal<C> by_alpha(channel.alpha), by_beta(channel.beta);  // the same for many x
    found.expm1 = max(broadcast(C(-1)), divide<C>(select(mask, x, Lanes<C>{}), by_alpha));
    found.exp = found.expm1 + C(1);
    // exp is 0 where the logarithm is infinite
    bounded = max(-largest, log1p(found.expm1, found.exp) * by_beta.scale * by_beta.inverse);
  } else {
    bounded = max(channel.floor, x);
    found = exponential<T, true>(bounded, channel);
  }
  auto [exp, expm1, s, p] = found;
  Lanes<C> slope = channel.alpha * channel.beta, weight = exp * slope, grad_exp = grad * exp;
  Lanes<C> slope_error = product_error(channel.alpha, channel.beta, slope);
  if constexpr (sizeof(T) == 4 && kFused) {  // without the rounding of alpha * beta: 2.4 ulp instead of 2.65
    weight = fma(exp, slope, min(largest, exp) * slope_error);
  } else if constexpr (sizeof(T) == 4 && !from_output) {  // and as if exp were not rounded: 2.1 ulp instead of 3.3
    Lanes<C> scaled = s * slope, rest = scaled * p, sum = scaled + rest;  // s is a power of two
    Lanes<C> exact = sum + (((scaled - sum) + rest) + s * slope_error);
    weight = ((exp <= largest) & (exact == exact)) ? exact : weight;  // infinite where exp is, or the sum
  }
  sums.alpha = add_where(mask, grad, expm1, sums.alpha);
  sums.beta = add_where(mask, grad_exp, bounded, sums.beta);
  return select(mask, grad * weight, grad);
}

// What to ask memory for, in elements from where the first register of a batch lies: it is reached later. A quarter less
// time for 2^22 floats, backward, on one core of a Sapphire Rapids. An address behind the end does no harm.
struct Ahead {
  std::int64_t first, step;
};
inline void prefetch(const void* from) { __builtin_prefetch(from); }
inline void prefetch_to_write(void* to) { __builtin_prefetch(to, 1); }

// Terms of a lane that are added in C before the sum goes on in double: rounding costs a sum of 8 at most 4 * 2^-24 of
// itself, if all terms are equal, and a sum of 256 as much as 128 * 2^-24.
constexpr int kChain = 8;

// Computes `registers` of them, `stride` elements apart, that have their parameters in common; `count` elements of each if
// it is given, else all.
template <class T, int registers, class... Count, class C = Compute<T>>
inline void forward_registers(const T* x, T* y, std::int64_t stride, Ahead ahead, Channel<C> channel, Count... count) {
  for (std::int64_t i = 0, at = 0, next = ahead.first; i < registers; ++i, at += stride, next += ahead.step) {
    prefetch(x + next);
    prefetch_to_write(y + next);
    store(y + at, activate<T>(load(x + at, count...), channel), count...);
  }
}

template <class T, bool from_output, bool past_cache, int registers, class... Count, class C = Compute<T>>
inline Sums<C> backward_registers(const T* grad, const T* x, T* grad_x, std::int64_t stride, Ahead ahead,
                                  Channel<C> channel, Count... count) {
  Sums<C> sums{};
  for (std::int64_t i = 0, at = 0, next = ahead.first; i < registers; ++i, at += stride, next += ahead.step) {
    prefetch(grad + next);
    prefetch(x + next);
    if (!past_cache) prefetch_to_write(grad_x + next);
    auto terms = differentiate<T, from_output>(load(grad + at, count...), load(x + at, count...), channel, sums);
    if constexpr (past_cache && sizeof...(Count) == 0)
      store_past_cache(grad_x + at, terms);
    else
      store(grad_x + at, terms, count...);
  }
  return sums;
}

// ---- Planes, and how far ahead memory is asked for there.

template <class T>
constexpr Ahead kPlaneAhead{2048 / sizeof(T), kLanes<T>};

template <class T, class C = Compute<T>>
void forward_plane(const T* x, T* y, std::int64_t size, C alpha, C beta) {
  constexpr std::int64_t lanes = kLanes<T>;
  constexpr Ahead ahead = kPlaneAhead<T>;
  Channel<C> channel = channel_of(alpha, beta);
  std::int64_t i = 0;
  for (; i + lanes <= size; i += lanes) forward_registers<T, 1>(x + i, y + i, lanes, ahead, channel);
  if (int rest = size - i) forward_registers<T, 1>(x + i, y + i, lanes, ahead, channel, rest);
}

// Calls function(std::true_type) if grad_x is to be written past the caches and can be: it and steps of `stride` elements
// fall on whole registers. Else calls function(std::false_type).
template <class T, class Function>
inline void choose_stores(const T* grad_x, std::int64_t stride, bool past_cache, Function function) {
  auto is_whole = [](std::uintptr_t bytes) { return bytes % kRegisterBytes == 0; };
  if constexpr (kPastCache<T>)
    if (past_cache && is_whole(reinterpret_cast<std::uintptr_t>(grad_x)) && is_whole(stride * sizeof(T)))
      return function(std::true_type{});
  function(std::false_type{});
}

template <class T, bool from_output, bool past_cache, class C = Compute<T>>
inline void backward_plane(const T* grad, const T* x, T* grad_x, std::int64_t size, C alpha, C beta, Totals totals) {
  constexpr std::int64_t lanes = kLanes<T>;
  constexpr Ahead ahead = kPlaneAhead<T>;
  Channel<C> channel = channel_of(alpha, beta);
  Doubles total_alpha{}, total_beta{};
  auto add = [&](Sums<C> sums) {
    add_to(total_alpha, sums.alpha);
    add_to(total_beta, sums.beta);
  };
  std::int64_t i = 0;
  for (; i + kChain * lanes <= size; i += kChain * lanes)
    add(backward_registers<T, from_output, past_cache, kChain>(grad + i, x + i, grad_x + i, lanes, ahead, channel));
  for (; i + lanes <= size; i += lanes)
    add(backward_registers<T, from_output, past_cache, 1>(grad + i, x + i, grad_x + i, lanes, ahead, channel));
  if (int rest = size - i)
    add(backward_registers<T, from_output, past_cache, 1>(grad + i, x + i, grad_x + i, lanes, ahead, channel, rest));
  *totals.alpha = total(total_alpha);
  *totals.beta = total(total_beta);
}

template <class T, bool from_output, class C = Compute<T>>
void backward_plane(const T* grad, const T* x, T* grad_x, std::int64_t size, C alpha, C beta, Totals totals,
                    bool past_cache) {
  choose_stores(grad_x, 0, past_cache, [&](auto past) {
    backward_plane<T, from_output, past.value>(grad, x, grad_x, size, alpha, beta, totals);
  });
}

// ---- Rows: kChain of them together, so that parameters are loaded and sums are stored once for all. While they are
// computed the next rows are asked for, as the prefetcher does not follow such a walk: in the order of memory if rows lie
// one behind the other.

template <class T, int rows>
inline Ahead ahead_of(std::int64_t column, std::int64_t columns, std::int64_t stride) {
  if (stride == columns) return {rows * stride + (rows - 1) * column, kLanes<T>};
  return {rows * stride, stride};
}

template <class C>
inline Channel<C> channel_at(Parameters<C> parameters, std::int64_t i) {
  return {load(parameters.alpha + i), load(parameters.beta + i), load(parameters.floor + i), load(parameters.head + i),
          load(parameters.tail + i)};
}

template <class T, int rows, class C = Compute<T>>
inline void forward_together(const T* x, T* y, std::int64_t columns, std::int64_t stride, Parameters<C> parameters) {
  std::int64_t i = 0;
  auto compute = [&](auto... count) {
    Ahead ahead = ahead_of<T, rows>(i, columns, stride);
    forward_registers<T, rows>(x + i, y + i, stride, ahead, channel_at(parameters, i), count...);
  };
  for (; i + kLanes<T> <= columns; i += kLanes<T>) compute();
  if (int rest = columns - i) compute(rest);
}

template <class T, class C = Compute<T>>
void forward_rows(const T* x, T* y, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                  Parameters<C> parameters) {
  std::int64_t row = 0;
  for (; row + kChain <= rows; row += kChain)
    forward_together<T, kChain>(x + row * stride, y + row * stride, columns, stride, parameters);
  for (; row < rows; ++row) forward_together<T, 1>(x + row * stride, y + row * stride, columns, stride, parameters);
}

template <class T, bool from_output, bool past_cache, int rows, class C = Compute<T>>
inline void backward_together(const T* grad, const T* x, T* grad_x, std::int64_t columns, std::int64_t stride,
                              Parameters<C> parameters, Totals totals) {
  std::int64_t i = 0;
  auto compute = [&](auto... count) {
    Ahead ahead = ahead_of<T, rows>(i, columns, stride);
    return backward_registers<T, from_output, past_cache, rows>(grad + i, x + i, grad_x + i, stride, ahead,
                                                    channel_at(parameters, i), count...);
  };
  for (; i + kLanes<T> <= columns; i += kLanes<T>) {
    Sums<C> sums = compute();
    add_lanes(totals.alpha + i, sums.alpha);
    add_lanes(totals.beta + i, sums.beta);
  }
  if (int rest = columns - i) {
    Sums<C> sums = compute(rest);
    for (int lane = 0; lane < rest; ++lane) {
      totals.alpha[i + lane] += sums.alpha[lane];
      totals.beta[i + lane] += sums.beta[lane];
    }
  }
}

template <class T, bool from_output, class C = Compute<T>>
void backward_rows(const T* grad, const T* x, T* grad_x, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                   Parameters<C> parameters, Totals totals, bool past_cache) {
  for (std::int64_t i = 0; i < columns; ++i) totals.alpha[i] = totals.beta[i] = 0;
  // Whole lines only: halves of lines, of eight rows in turns, took three times as long (AVX2).
  choose_stores(grad_x, stride, past_cache && kRegisterBytes == 64, [&](auto past) {
    std::int64_t row = 0;
    for (; row + kChain <= rows; row += kChain)
      backward_together<T, from_output, past.value, kChain>(grad + row * stride, x + row * stride,
                                                            grad_x + row * stride, columns, stride, parameters, totals);
    for (; row < rows; ++row)
      backward_together<T, from_output, past.value, 1>(grad + row * stride, x + row * stride, grad_x + row * stride,
                                                       columns, stride, parameters, totals);
  });
}

// Sums of four registers at a time, so that an addition does not wait for the one before.
constexpr int kTogether = 4;

template <class C>
struct Powers {
  Lanes<C> sum{}, squares{};
  void add(Lanes<C> x) {
    sum += x;
    squares = fma(x, x, squares);
  }
};

template <class T, class C = Compute<T>>
void moments_plane(const T* x, std::int64_t size, double* sum, double* squares) {
  Doubles total_sum{}, total_squares{};
  std::int64_t i = 0;
  while (i < size) {
    Powers<C> powers[kTogether];
    for (int k = 0; k < kChain && i + kTogether * kLanes<T> <= size; ++k, i += kTogether * kLanes<T>)
      for (int j = 0; j < kTogether; ++j) powers[j].add(load(x + i + j * kLanes<T>));
    if (size - i < kTogether * kLanes<T>) {
      for (; i + kLanes<T> <= size; i += kLanes<T>) powers[0].add(load(x + i));
      if (int rest = size - i) powers[1].add(load(x + i, rest));
      i = size;
    }
    add_to(total_sum, (powers[0].sum + powers[1].sum) + (powers[2].sum + powers[3].sum));
    add_to(total_squares, (powers[0].squares + powers[1].squares) + (powers[2].squares + powers[3].squares));
  }
  *sum = total(total_sum);
  *squares = total(total_squares);
}

template <class T, class C = Compute<T>>
void moments_rows(const T* x, std::int64_t rows, std::int64_t columns, std::int64_t stride, double* sums,
                  double* squares) {
  alignas(kRegisterBytes) C of_column[kBlockColumns + kPadding];
  for (std::int64_t i = 0; i < columns; ++i) sums[i] = 0;
  Doubles total_squares{};
  for (std::int64_t row = 0; row < rows;) {
    for (std::int64_t i = 0; i < columns + kLanes<T>; ++i) of_column[i] = 0;
    for (int chain = 0; chain < kChain && row < rows; ++chain, ++row, x += stride) {
      std::int64_t i = 0;
      while (i < columns) {
        Powers<C> powers[kTogether];
        auto add = [&](std::int64_t at, int j, Lanes<C> values) {
          powers[j].add(values);
          store(of_column + at, load(of_column + at) + values);
        };
        for (int k = 0; k < kChain && i + kTogether * kLanes<T> <= columns; ++k, i += kTogether * kLanes<T>)
          for (int j = 0; j < kTogether; ++j) add(i + j * kLanes<T>, j, load(x + i + j * kLanes<T>));
        if (columns - i < kTogether * kLanes<T>) {
          for (; i + kLanes<T> <= columns; i += kLanes<T>) add(i, 0, load(x + i));
          if (int rest = columns - i) add(i, 1, load(x + i, rest));
          i = columns;
        }
        add_to(total_squares, (powers[0].squares + powers[1].squares) + (powers[2].squares + powers[3].squares));
      }
    }
    for (std::int64_t i = 0; i < columns; ++i) sums[i] += of_column[i];
  }
  *squares = total(total_squares);
}

template <class T, class C = Compute<T>>
void products(const T* x, std::int64_t count, std::int64_t stride, double* found) {
  for (std::int64_t row = 0; row < count; ++row)
    for (std::int64_t first = 0; first <= row; first += kTogether) {
      Doubles totals[kTogether]{};
      const T* others[kTogether];
      for (int j = 0; j < kTogether; ++j) others[j] = x + (first + j <= row ? first + j : row) * stride;
      for (std::int64_t i = 0; i < stride;) {
        Lanes<C> sums[kTogether]{};
        for (int k = 0; k < 2 * kChain && i < stride; ++k, i += kLanes<T>) {
          Lanes<C> values = load(x + row * stride + i);
          for (int j = 0; j < kTogether; ++j) sums[j] = fma(values, load(others[j] + i), sums[j]);
        }
        for (int j = 0; j < kTogether; ++j) add_to(totals[j], sums[j]);
      }
      for (int j = 0; j < kTogether && first + j <= row; ++j) found[row * count + first + j] = total(totals[j]);
    }
}

template <class T>
constexpr Kernels<T> kernels_of() {
  return {forward_plane<T>, forward_rows<T>, {backward_plane<T, false>, backward_rows<T, false>},
          {backward_plane<T, true>, backward_rows<T, true>}, {moments_plane<T>, moments_rows<T>, products<T>}};
}

}  // namespace

extern const InstructionSet MPELU_INSTRUCTION_SET;
const InstructionSet MPELU_INSTRUCTION_SET{kernels_of<float>(), kernels_of<double>(), kernels_of<BFloat16>(),
                                           kernels_of<Half>()};
