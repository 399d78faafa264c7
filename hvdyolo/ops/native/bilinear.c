/* Bilinear resizing of RGB images: each pixel from the two nearest of the source, each way.
 *
 * In whole numbers, so that every processor makes the same bytes: shares of a pixel in 128ths across, which with a byte
 * fill 15 bits, and in 32,768ths down; rounded once at the end. bilinear.py calls the function at the end.
 */

#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum {
  ACROSS_BITS = 7,
  DOWN_BITS = 15,
  ACROSS = 1 << ACROSS_BITS,
  DOWN = 1 << DOWN_BITS,
  MIDDLE = 128 /* bytes are taken from here: what is across then has a sign, and 16 bits for it */
};

typedef struct {
  long first, second; /* source pixels */
  int share;          /* of the second, in steps of a pixel */
} place;

static inline long smaller(long a, long b) { return a < b ? a : b; }
static inline long larger(long a, long b) { return a > b ? a : b; }

/* Where the centre of pixel i of `to` is among the centres of `from` pixels, and at their edges no further. */
static place place_of(long i, long from, long to, long steps) {
  const long exact = larger((2 * i + 1) * from - to, 0) * steps; /* in steps times 2 to */
  const long rounded = smaller((exact + to) / (2 * to), (from - 1) * steps);
  const long first = rounded / steps;
  return (place){first, smaller(first + 1, from - 1), (int)(rounded % steps)};
}

/* One row of the source, as long as one of the target, in 128ths from the middle. */
static void filter_across(const uint8_t *restrict row, const place *columns, long width, int16_t *restrict filtered) {
  for (long x = 0; x < width; x++) {
    const uint8_t *first = row + 3 * columns[x].first, *second = row + 3 * columns[x].second;
    const int share = columns[x].share;
    for (int channel = 0; channel < 3; channel++)
      filtered[3 * x + channel] =
          (int16_t)((ACROSS - share) * (first[channel] - MIDDLE) + share * (second[channel] - MIDDLE));
  }
}

/* Values `from` ... `to` - 1 of a row of the target, from two filtered rows. */
static void filter_down(const int16_t *restrict first, const int16_t *restrict second, int share, uint8_t *restrict row,
                        long from, long to) {
  for (long i = from; i < to; i++) {
    const int step = ((second[i] - first[i]) * share + DOWN / 2) >> DOWN_BITS;
    row[i] = (uint8_t)(((first[i] + step + ACROSS / 2) >> ACROSS_BITS) + MIDDLE);
  }
}

#if defined(__AVX2__)

enum {
  WINDOW = 16,             /* bytes of the source for two pixels of the target */
  FEWEST = WINDOW / 3 + 1, /* pixels of a row that has a window */
  MOST_STEP = 3            /* source pixels between the two: with the neighbours of both they fit into the window */
};

/* How four pixels of the target are made, two from each of two windows. */
typedef struct {
  int32_t start[2];    /* of the windows in the row */
  uint8_t pick[32];    /* bytes of the window, for each value the first and the second */
  uint8_t weights[32]; /* of these */
} quad;

static quad quad_of(const place *columns, long x, long width, long source_width) {
  quad made;
  for (int half = 0; half < 2; half++) {
    const place *pair[2];
    for (int i = 0; i < 2; i++) pair[i] = columns + smaller(x + 2 * half + i, width - 1);
    /* No window ends after its row: the image may be all the memory there is. */
    const long start = smaller(3 * pair[0]->first, 3 * source_width - WINDOW);
    made.start[half] = (int32_t)start;
    for (int i = 0; i < WINDOW / 2; i++) { /* six values, and two that are overwritten */
      const place *column = pair[i / 3 % 2];
      const int lane = WINDOW * half + 2 * i;
      made.pick[lane] = (uint8_t)(3 * column->first + i % 3 - start);
      made.pick[lane + 1] = (uint8_t)(3 * column->second + i % 3 - start);
      made.weights[lane] = (uint8_t)(ACROSS - column->share);
      made.weights[lane + 1] = (uint8_t)column->share;
    }
  }
  return made;
}

static inline __m256i load(const void *bytes) { return _mm256_loadu_si256(bytes); }

/* As filter_across, and two values more after every twelve, which the next ones overwrite. */
static void filter_quads_across(const uint8_t *restrict row, const quad *restrict quads, long count,
                                int16_t *restrict filtered) {
  const __m256i middle = _mm256_set1_epi8((char)MIDDLE);
  for (long i = 0; i < count; i++, filtered += 12) {
    const __m128i window = _mm_loadu_si128((const __m128i *)(row + quads[i].start[0]));
    const __m128i next = _mm_loadu_si128((const __m128i *)(row + quads[i].start[1]));
    const __m256i windows = _mm256_inserti128_si256(_mm256_castsi128_si256(window), next, 1);
    const __m256i pairs = _mm256_shuffle_epi8(_mm256_xor_si256(windows, middle), load(quads[i].pick));
    const __m256i sums = _mm256_maddubs_epi16(load(quads[i].weights), pairs);
    _mm_storeu_si128((__m128i *)filtered, _mm256_castsi256_si128(sums));
    _mm_storeu_si128((__m128i *)(filtered + 6), _mm256_extracti128_si256(sums, 1));
  }
}

/* As filter_down, of the values that fill whole registers; how many these are. */
static long filter_registers_down(const int16_t *restrict first, const int16_t *restrict second, int share,
                                  uint8_t *restrict row, long values) {
  const __m256i shares = _mm256_set1_epi16((int16_t)share), half = _mm256_set1_epi16(ACROSS / 2);
  const __m256i middle = _mm256_set1_epi8((char)MIDDLE);
  long i = 0;
  for (; i + 32 <= values; i += 32) {
    __m256i levels[2];
    for (int part = 0; part < 2; part++) {
      const __m256i a = load(first + i + 16 * part), b = load(second + i + 16 * part);
      const __m256i between = _mm256_add_epi16(a, _mm256_mulhrs_epi16(_mm256_sub_epi16(b, a), shares));
      levels[part] = _mm256_srai_epi16(_mm256_add_epi16(between, half), ACROSS_BITS);
    }
    /* Packing interleaves the halves of its registers. */
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(levels[0], levels[1]), 0xd8);
    _mm256_storeu_si256((__m256i *)(row + i), _mm256_xor_si256(bytes, middle));
  }
  return i;
}

#endif

/* Strides are in bytes, from row to row. */
void resize_bilinear(const uint8_t *image, long stride, long height, long width, uint8_t *target, long target_stride,
                     long target_height, long target_width) {
  const long quad_count = (target_width + 3) / 4;
  place columns[target_width];
  for (long x = 0; x < target_width; x++) columns[x] = place_of(x, width, target_width, ACROSS);
#if defined(__AVX2__)
  const int has_windows = width >= FEWEST && width <= MOST_STEP * target_width;
  quad quads[has_windows ? quad_count : 1];
  for (long i = 0; has_windows && i < quad_count; i++) quads[i] = quad_of(columns, 4 * i, target_width, width);
#endif

  int16_t filtered[2][12 * quad_count + 2];
  long held[2] = {-1, -1}; /* which row of the source each is of: even rows in the first, odd ones in the second */
  for (long y = 0; y < target_height; y++) {
    const place rows = place_of(y, height, target_height, DOWN);
    const long needed[2] = {rows.first, rows.second};
    for (int i = 0; i < 2; i++) {
      const long row = needed[i];
      if (held[row % 2] == row) continue;
      held[row % 2] = row;
#if defined(__AVX2__)
      if (has_windows) {
        filter_quads_across(image + row * stride, quads, quad_count, filtered[row % 2]);
        continue;
      }
#endif
      filter_across(image + row * stride, columns, target_width, filtered[row % 2]);
    }
    const int16_t *first = filtered[rows.first % 2], *second = filtered[rows.second % 2];
    uint8_t *row = target + y * target_stride;
    long done = 0;
#if defined(__AVX2__)
    done = filter_registers_down(first, second, rows.share, row, 3 * target_width);
#endif
    filter_down(first, second, rows.share, row, done, 3 * target_width);
  }
}
