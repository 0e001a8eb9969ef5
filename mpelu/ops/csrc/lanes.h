// One SIMD register of the instruction set that this unit is compiled for, as a GCC or Clang vector: + - * are the
// compiler's, the rest is here. All of it has internal linkage: of what units share, the linker keeps anyone's copy.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels.h"

namespace {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

template <class T, int bytes = kRegisterBytes>
struct Vector {
  typedef T type __attribute__((vector_size(bytes)));
};
template <class T>
using Lanes = typename Vector<T>::type;
using Floats = Lanes<float>;
using Doubles = Lanes<double>;
using Ints = Lanes<std::int32_t>;
using Longs = Lanes<std::int64_t>;

// How many elements of T are computed together.
template <class T>
constexpr int kLanes = kRegisterBytes / sizeof(Compute<T>);

template <class To, class From>
inline To as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class C>
inline Lanes<C> broadcast(C value) {
  return value - Lanes<C>{};  // value - 0 is value, -0 included
}

// ---- Arithmetic. max and min return x where x is NaN; `negative` is true where x <= 0 or NaN.

#if defined(__AVX512F__)

inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
inline Floats max(Floats bound, Floats x) { return _mm512_max_ps(bound, x); }
inline Doubles max(Doubles bound, Doubles x) { return _mm512_max_pd(bound, x); }
inline Floats min(Floats bound, Floats x) { return _mm512_min_ps(bound, x); }
inline Doubles min(Doubles bound, Doubles x) { return _mm512_min_pd(bound, x); }

inline __mmask16 negative(Floats x) { return _mm512_cmp_ps_mask(x, Floats{}, _CMP_NGT_UQ); }
inline __mmask8 negative(Doubles x) { return _mm512_cmp_pd_mask(x, Doubles{}, _CMP_NGT_UQ); }
inline Floats select(__mmask16 mask, Floats a, Floats b) { return _mm512_mask_blend_ps(mask, b, a); }
inline Doubles select(__mmask8 mask, Doubles a, Doubles b) { return _mm512_mask_blend_pd(mask, b, a); }
// sum + a * b, or sum
inline Floats add_where(__mmask16 mask, Floats a, Floats b, Floats sum) {
  return _mm512_mask3_fmadd_ps(a, b, sum, mask);
}
inline Doubles add_where(__mmask8 mask, Doubles a, Doubles b, Doubles sum) {
  return _mm512_mask3_fmadd_pd(a, b, sum, mask);
}

#else

#if defined(__AVX2__)
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
inline Floats max(Floats bound, Floats x) { return _mm256_max_ps(bound, x); }
inline Doubles max(Doubles bound, Doubles x) { return _mm256_max_pd(bound, x); }
inline Floats min(Floats bound, Floats x) { return _mm256_min_ps(bound, x); }
inline Doubles min(Doubles bound, Doubles x) { return _mm256_min_pd(bound, x); }
#else
#if defined(__aarch64__)
inline Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return vfmaq_f64(c, a, b); }
#else
template <class V>
inline V fma(V a, V b, V c) {
  return a * b + c;
}
#endif
template <class V>
inline V max(V bound, V x) {
  return x < bound ? bound : x;
}
template <class V>
inline V min(V bound, V x) {
  return x > bound ? bound : x;
}
#endif

template <class V>
inline auto negative(V x) {
  return ~(x > 0);
}
template <class Mask, class V>
inline V select(Mask mask, V a, V b) {
  return mask ? a : b;
}
template <class Mask, class V>
inline V add_where(Mask mask, V a, V b, V sum) {
  return sum + as<V>(mask & as<Mask>(a * b));
}

#endif

#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

// What rounding took away from product = a * b.
template <class V>
inline V product_error(V a, V b, V product) {
  if constexpr (kFused) return fma(a, b, -product);
  auto head = [](V value) {  // Dekker: products of half significands are exact
    if constexpr (sizeof(value[0]) == sizeof(float))
      return as<V>(as<Ints>(value) & -0x1000);
    else
      return as<V>(as<Longs>(value) & -0x8000000L);
  };
  V a_head = head(a), b_head = head(b), a_tail = a - a_head, b_tail = b - b_head;
  return ((a_head * b_head - product) + a_head * b_tail + a_tail * b_head) + a_tail * b_tail;
}

// 2^n from n + 127 + 1.5 * 2^23 (double: n + 1023 + 1.5 * 2^52), whose last bits are the exponent; 0 for n = -127 (-1023).
inline Floats power_of_two(Floats shifted) { return as<Floats>(as<Ints>(shifted) << 23); }
inline Doubles power_of_two(Doubles shifted) { return as<Doubles>(as<Longs>(shifted) << 52); }

inline void add_to(Doubles& sum, Doubles terms) { sum += terms; }
inline void add_to(Doubles& sum, Floats terms) {
#if defined(__AVX512F__)
  sum += _mm512_cvtps_pd(_mm512_castps512_ps256(terms)) + _mm512_cvtps_pd(_mm512_extractf32x8_ps(terms, 1));
#elif defined(__AVX2__)
  sum += _mm256_cvtps_pd(_mm256_castps256_ps128(terms)) + _mm256_cvtps_pd(_mm256_extractf128_ps(terms, 1));
#else
  sum += Doubles{terms[0], terms[1]} + Doubles{terms[2], terms[3]};
#endif
}

// Adds the lanes to as many numbers.
inline void add_lanes(double* sums, Doubles terms) {
  Doubles totals;
  std::memcpy(&totals, sums, sizeof totals);
  totals += terms;
  std::memcpy(sums, &totals, sizeof totals);
}
inline void add_lanes(double* sums, Floats terms) {
  Doubles low, high;
#if defined(__AVX512F__)
  low = _mm512_cvtps_pd(_mm512_castps512_ps256(terms));
  high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(terms, 1));
#elif defined(__AVX2__)
  low = _mm256_cvtps_pd(_mm256_castps256_ps128(terms));
  high = _mm256_cvtps_pd(_mm256_extractf128_ps(terms, 1));
#else
  low = Doubles{terms[0], terms[1]};
  high = Doubles{terms[2], terms[3]};
#endif
  add_lanes(sums, low);
  add_lanes(sums + kLanes<double>, high);
}

inline double total(Doubles terms) {
  constexpr int count = kLanes<double>;
  for (int half = count / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) terms[i] += terms[i + half];
  return terms[0];
}

// ---- Conversion between what lies in memory and what is computed with, rounded to nearest even.

template <class T>
struct Memory {  // float and double lie in memory as they are computed with
  using Packed = Lanes<T>;
  static Packed widen(Packed packed) { return packed; }
  static Packed narrow(Packed values) { return values; }
};

using Shorts = Vector<std::uint16_t, kRegisterBytes / 2>::type;
using Words = Lanes<std::uint32_t>;

inline Words widen_bits(Shorts bits) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu16_epi32((__m256i)bits);
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32((__m128i)bits);
#else
  return __builtin_convertvector(bits, Words);
#endif
}
inline Shorts narrow_bits(Words bits) {
#if defined(__AVX512F__)
  return (Shorts)_mm512_cvtepi32_epi16((__m512i)bits);
#elif defined(__AVX2__)
  __m256i packed = _mm256_packus_epi32((__m256i)bits, (__m256i)bits);
  return (Shorts)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
  return __builtin_convertvector(bits, Shorts);
#endif
}

template <>
struct Memory<BFloat16> {
  using Packed = Shorts;
  static Floats widen(Packed packed) { return as<Floats>(widen_bits(packed) << 16); }
  static Packed narrow(Floats values) {
#if defined(__AVX512BF16__)  // results below 2^-126 become 0
    return (Shorts)_mm512_cvtneps_pbh(values);
#else
    // a NaN stays one: those that arithmetic makes, or takes from narrow inputs, do not carry into the sign
    Words bits = as<Words>(values);
    return narrow_bits((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
  }
};

template <>
struct Memory<Half> {
  using Packed = Shorts;
#if defined(__AVX512F__)
  static Floats widen(Packed packed) { return _mm512_cvtph_ps((__m256i)packed); }
  static Packed narrow(Floats values) { return (Shorts)_mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__AVX2__)
  static Floats widen(Packed packed) { return _mm256_cvtph_ps((__m128i)packed); }
  static Packed narrow(Floats values) { return (Shorts)_mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT); }
#else  // by hand: a scalar _Float16 would call into a libgcc newer than the one that manylinux promises
  static Floats widen(Packed packed) {
    Words bits = widen_bits(packed), magnitude = (bits & 0x7fff) << 13;
    Floats scaled = as<Floats>(magnitude) * 0x1p112f;  // moves the bias from 15 to 127, subnormals too
    Words special = (Words)(magnitude >= 0x7c00u << 13) & 0x7f800000;
    return as<Floats>(as<Words>(scaled) | special | (bits & 0x8000) << 16);
  }
  static Packed narrow(Floats values) {
    Words sign = as<Words>(values) & 0x80000000;
    Floats magnitude = as<Floats>(as<Words>(values) ^ sign);
    // the unit in the last place of the half is that of base + magnitude in float: the sum rounds at the right bit
    Words exponent = as<Words>(max(broadcast(0x1p-14f), magnitude)) & 0x7f800000;
    Floats base = as<Floats>(exponent + (13 << 23));
    Words rounded = as<Words>((magnitude + base) - base + 0.0f);
    Words half = as<Words>(as<Floats>(rounded) * 0x1p-112f) >> 13;
    half = magnitude >= 65520.0f ? Words{} + 0x7c00 : half;
    half = magnitude != magnitude ? Words{} + 0x7e00 : half;
    return narrow_bits(half | sign >> 16);
  }
#endif
};

template <class T>
using Packed = typename Memory<T>::Packed;

template <class T>
inline Lanes<Compute<T>> load(const T* from) {
  Packed<T> packed;
  std::memcpy(&packed, from, sizeof packed);
  return Memory<T>::widen(packed);
}

template <class T>
inline void store(T* to, Lanes<Compute<T>> values) {
  Packed<T> packed = Memory<T>::narrow(values);
  std::memcpy(to, &packed, sizeof packed);
}

// Whether `store_past_cache` passes the caches by for this type, to addresses that are multiples of kRegisterBytes. Other
// threads see such stores after a fence only, which is the caller's.
#if defined(__x86_64__)
template <class T>
constexpr bool kPastCache = sizeof(T) == sizeof(Compute<T>);
#else
template <class T>
constexpr bool kPastCache = false;
#endif

template <class T>
inline void store_past_cache(T* to, Lanes<T> values) {
#if defined(__AVX512F__)
  _mm512_stream_ps(reinterpret_cast<float*>(to), as<Floats>(values));
#elif defined(__AVX2__)
  _mm256_stream_ps(reinterpret_cast<float*>(to), as<Floats>(values));
#elif defined(__x86_64__)
  _mm_stream_ps(reinterpret_cast<float*>(to), as<Floats>(values));
#endif
}

// The same for `count` < kLanes<T> elements; 0 is read for the others.
template <class T>
inline Lanes<Compute<T>> load(const T* from, int count) {
  Packed<T> packed{};
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 2)
    packed = (Packed<T>)_mm256_maskz_loadu_epi16((1 << count) - 1, from);
  else if constexpr (sizeof(T) == 4)
    packed = (Packed<T>)_mm512_maskz_loadu_ps((1 << count) - 1, from);
  else
    packed = (Packed<T>)_mm512_maskz_loadu_pd((1 << count) - 1, from);
#else
  std::memcpy(&packed, from, count * sizeof(T));
#endif
  return Memory<T>::widen(packed);
}

template <class T>
inline void store(T* to, Lanes<Compute<T>> values, int count) {
  Packed<T> packed = Memory<T>::narrow(values);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 2)
    _mm256_mask_storeu_epi16(to, (1 << count) - 1, (__m256i)packed);
  else if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(to, (1 << count) - 1, (__m512)packed);
  else
    _mm512_mask_storeu_pd(to, (1 << count) - 1, (__m512d)packed);
#else
  std::memcpy(to, &packed, count * sizeof(T));
#endif
}

}  // namespace
