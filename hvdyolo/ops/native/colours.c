/* Hue, saturation and value of RGB images, and mirror images, in place.
 *
 * In single precision, each result rounded once: what hvdyolo/ops/pixels.py does on the network's device. Compiled without
 * contraction (setup.py), so that every processor makes the same bytes. colours.py calls the functions at the end.
 */

#include <stdint.h>

enum { BLOCK = 512 }; /* pixels: their three planes, 6 KiB, stay in the first cache */

static inline float larger(float a, float b) { return a > b ? a : b; }
static inline float smaller(float a, float b) { return a < b ? a : b; }
static inline float distance(float a, float b) { return a > b ? a - b : b - a; }
static inline float within_unit(float x) { return larger(smaller(x, 1.0f), 0.0f); }

/* Planes of whole numbers 0 ... 255, to the like plus a half and a fraction. */
static void scale_planes(float *restrict red, float *restrict green, float *restrict blue, long n, float hue_gain,
                         float saturation_gain, float value_gain) {
  for (long i = 0; i < n; i++) {
    const float r = red[i], g = green[i], b = blue[i];
    float value = larger(larger(r, g), b);
    const float chroma = value - smaller(smaller(r, g), b);

    /* In sixths of a turn, by the largest channel, red before green before blue. */
    float sextant = value == g ? 2.0f : 4.0f, difference = value == g ? b - r : r - g;
    sextant = value == r ? 0.0f : sextant;
    difference = value == r ? g - b : difference;
    float hue = difference / larger(chroma, 1.0f) + sextant; /* grey: 0 / 1 */
    hue = (hue < 0.0f ? hue + 6.0f : hue) * hue_gain;
    hue = hue >= 6.0f ? hue - 6.0f : hue;

    const float saturation = smaller(chroma / larger(value, 1.0f) * saturation_gain, 1.0f);
    value = smaller(value * value_gain, 255.0f);

    /* A channel is the value, less the depth where the hue is far from the channel's own. */
    const float depth = saturation * value;
    red[i] = value - depth * within_unit(2.0f - distance(hue, 3.0f)) + 0.5f;
    green[i] = value - depth * within_unit(distance(hue, 2.0f) - 1.0f) + 0.5f;
    blue[i] = value - depth * within_unit(distance(hue, 4.0f) - 1.0f) + 0.5f;
  }
}

/* Factors of 0 ... 2 for the hue, of 0 and more for the others. */
void scale_colours(uint8_t *image, long pixels, float hue, float saturation, float value) {
  float red[BLOCK], green[BLOCK], blue[BLOCK];
  for (long start = 0; start < pixels; start += BLOCK) {
    const long n = pixels - start < BLOCK ? pixels - start : BLOCK;
    uint8_t *restrict rgb = image + 3 * start;
    for (long i = 0; i < n; i++) {
      red[i] = rgb[3 * i];
      green[i] = rgb[3 * i + 1];
      blue[i] = rgb[3 * i + 2];
    }
    scale_planes(red, green, blue, n, hue, saturation, value);
    for (long i = 0; i < n; i++) {
      rgb[3 * i] = (uint8_t)(int)red[i];
      rgb[3 * i + 1] = (uint8_t)(int)green[i];
      rgb[3 * i + 2] = (uint8_t)(int)blue[i];
    }
  }
}

/* Left and right change places. Plane by plane, which is what compilers vectorise. */
void mirror(uint8_t *image, long height, long width) {
  uint8_t planes[3][width];
  for (uint8_t *restrict row = image; row < image + 3 * height * width; row += 3 * width) {
    for (long x = 0; x < width; x++) {
      planes[0][x] = row[3 * x];
      planes[1][x] = row[3 * x + 1];
      planes[2][x] = row[3 * x + 2];
    }
    for (long x = 0; x < width; x++) {
      row[3 * x] = planes[0][width - 1 - x];
      row[3 * x + 1] = planes[1][width - 1 - x];
      row[3 * x + 2] = planes[2][width - 1 - x];
    }
  }
}
