/* The gradient of the weights of a 3 x 3 convolution, in single precision, for activations whose channels are last.
 *
 *     dL/dw[o, c, i, j] = sum over images, r and q of  dL/dy[r, q, o]  x[r stride + i - 1, q stride + j - 1, c]
 *
 * These are nine products of matrices that are as small as the channels and as long as there are places in a batch.
 * A few rows of an image at a time are copied so that what is needed together lies together: x in tiles of LANES
 * channels with a border of zeros, dL/dy in tiles of OUTPUTS. For a row of the kernel, OUTPUTS times three times LANES
 * sums stay in registers over all places of such a block.
 *
 * A thread computes some outputs for all images, so the number of threads changes no bit. Sums are made over blocks,
 * and these are added up, which is ten times as exact as one sum over all places.
 *
 * setup.py compiles this for AVX2 only, whose sixteen registers of eight values it is made for. convolution.py calls
 * the function at the end, and sees to its arguments.
 */

#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum {
  KERNEL = 3,
  LANES = 8,
  OUTPUTS = 4,   /* so there are twelve sums, of which two can be added to at a time, for four cycles */
  PLACES = 128,  /* of a block, about: a tile of x stays in the first cache, all tiles in the second */
  SUMS = OUTPUTS * KERNEL * LANES
};

typedef float vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

/* Of x, (images, height, width, channels), and of y. */
typedef struct {
  long images, height, width, channels, y_height, y_width, outputs, stride;
} Convolution;

/* What a thread does. Lengths in values. */
typedef struct {
  long first, y_tiles;         /* the first of its outputs, and tiles of them */
  long x_tiles;                /* of all channels */
  long rows;                   /* of y in a block */
  long x_row, x_tile, y_tile;  /* of the copies */
} Share;

static long smaller(long a, long b) { return a < b ? a : b; }

static Share share_of(const Convolution *of, long thread, long threads) {
  const long tiles = of->outputs / OUTPUTS, first = tiles * thread / threads, end = tiles * (thread + 1) / threads;
  Share share = {.first = first * OUTPUTS, .y_tiles = end - first, .x_tiles = of->channels / LANES};
  share.rows = smaller((PLACES + of->y_width - 1) / of->y_width, of->y_height);
  share.x_row = ((of->y_width - 1) * of->stride + KERNEL) * LANES;
  share.x_tile = ((share.rows - 1) * of->stride + KERNEL) * share.x_row;
  share.y_tile = share.rows * of->y_width * OUTPUTS;
  return share;
}

/* `places` of `channels` each: the first `depth` channels to `to`, the next ones to `to` + `tile`, and so on. Inline, as
 * a copy of known length is one instruction. */
static inline void copy_tiles(const float *restrict from, long places, long channels, float *restrict to, long depth,
                              long tiles, long tile) {
  for (long place = 0; place < places; place++)
    for (long t = 0; t < tiles; t++)
      memcpy(to + t * tile + place * depth, from + place * channels + t * depth, depth * sizeof *to);
}

/* What `rows` rows of y from `first` on see of an image, in tiles. */
static void copy_x(const Convolution *of, const Share *share, const float *image, long first, long rows, float *to) {
  const long needed = smaller(of->width, share->x_row / LANES - 1); /* places of a row; one of zeros is before them */
  for (long row = 0; row < (rows - 1) * of->stride + KERNEL; row++, to += share->x_row) {
    const long y = first * of->stride + row - 1, places = y >= 0 && y < of->height ? needed : 0;
    if (places)
      copy_tiles(image + y * of->width * of->channels, places, of->channels, to + LANES, LANES, share->x_tiles,
                 share->x_tile);
    for (long t = 0; t < share->x_tiles; t++) {
      float *start = to + t * share->x_tile, *end = start + (1 + places) * LANES;
      memset(start, 0, LANES * sizeof *start);
      memset(end, 0, (share->x_row - (1 + places) * LANES) * sizeof *end);
    }
  }
}

/* The products of all places of a block, with one row of the kernel, added to `sums` (OUTPUTS, KERNEL, LANES). */
static void add_products(const float *restrict x, long x_row, long x_step, const float *restrict of_y, long rows,
                         long width, float *restrict sums) {
  vector sum[OUTPUTS][KERNEL];
  for (int o = 0; o < OUTPUTS; o++)
    for (int j = 0; j < KERNEL; j++) sum[o][j] = (vector){0};
  for (long row = 0; row < rows; row++) {
    const float *place = x + row * x_row;
    for (long q = 0; q < width; q++, place += x_step, of_y += OUTPUTS) {
      vector values[KERNEL];
      for (int j = 0; j < KERNEL; j++) values[j] = *(const vector *)(place + j * LANES);
      for (int o = 0; o < OUTPUTS; o++)
        for (int j = 0; j < KERNEL; j++) sum[o][j] += of_y[o] * values[j];
    }
  }
  for (int o = 0; o < OUTPUTS; o++)
    for (int j = 0; j < KERNEL; j++) *(vector *)(sums + (o * KERNEL + j) * LANES) += sum[o][j];
}

/* From (y_tiles, x_tiles, KERNEL, OUTPUTS, KERNEL, LANES) to (outputs, channels, KERNEL, KERNEL). */
static void place_sums(const Convolution *of, const Share *share, const float *sums, float *weight_gradient) {
  for (long y_tile = 0; y_tile < share->y_tiles; y_tile++)
    for (long x_tile = 0; x_tile < share->x_tiles; x_tile++)
      for (long i = 0; i < KERNEL; i++)
        for (long o = 0; o < OUTPUTS; o++) {
          const long output = share->first + y_tile * OUTPUTS + o, filter = output * of->channels + x_tile * LANES;
          for (long j = 0; j < KERNEL; j++)
            for (long c = 0; c < LANES; c++) weight_gradient[((filter + c) * KERNEL + i) * KERNEL + j] = *sums++;
        }
}

/* Returns whether there was no memory. */
static int compute(const Convolution *of, const Share *share, const float *x, const float *y_gradient,
                   float *weight_gradient) {
  float *x_copy = malloc(share->x_tiles * share->x_tile * sizeof *x_copy);
  float *y_copy = malloc(share->y_tiles * share->y_tile * sizeof *y_copy);
  float *sums = calloc(share->y_tiles * share->x_tiles * KERNEL * SUMS, sizeof *sums);
  const int failed = !x_copy || !y_copy || !sums;
  for (long image = 0; image < of->images && !failed; image++)
    for (long first = 0; first < of->y_height; first += share->rows) {
      const long rows = smaller(share->rows, of->y_height - first);
      copy_x(of, share, x + image * of->height * of->width * of->channels, first, rows, x_copy);
      copy_tiles(y_gradient + (image * of->y_height + first) * of->y_width * of->outputs + share->first,
                 rows * of->y_width, of->outputs, y_copy, OUTPUTS, share->y_tiles, share->y_tile);
      for (long x_tile = 0; x_tile < share->x_tiles; x_tile++)
        for (long y_tile = 0; y_tile < share->y_tiles; y_tile++)
          for (long i = 0; i < KERNEL; i++)
            add_products(x_copy + x_tile * share->x_tile + i * share->x_row, of->stride * share->x_row,
                         of->stride * LANES, y_copy + y_tile * share->y_tile, rows, of->y_width,
                         sums + ((y_tile * share->x_tiles + x_tile) * KERNEL + i) * SUMS);
    }
  if (!failed) place_sums(of, share, sums, weight_gradient);
  free(x_copy);
  free(y_copy);
  free(sums);
  return failed;
}

/* `weight_gradient` (outputs, channels, 3, 3) of a convolution with a border of one place; `channels` is a multiple of
 * LANES, `outputs` one of OUTPUTS. Returns 0, or another number where there is no memory. */
int weight_gradient(const float *x, const float *y_gradient, float *weight_gradient, long images, long height,
                    long width, long channels, long y_height, long y_width, long outputs, long stride, int threads) {
  const Convolution of = {images, height, width, channels, y_height, y_width, outputs, stride};
  int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
  {
    const Share share = share_of(&of, omp_get_thread_num(), omp_get_num_threads());
    failed = share.y_tiles && compute(&of, &share, x, y_gradient, weight_gradient);
  }
  return failed;
}
