#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <stdexcept>

#include "core/error.hpp"
#include "image_fixtures.hpp"
#include "testing.hpp"

using namespace allosaur;
using testing::bytes_of;
using testing::difference;
using testing::expected;
using testing::fixture;
using testing::try_decode;

namespace {

struct Case {
  std::string name;
  std::string reference;  // whose expected pixels it has
  io::ImageFormat format;
  int channels, bits;
  int tolerance = 0;
};

const std::array kCases = {
    Case{"lzw.tif", "rgb.png", io::ImageFormat::tiff, 3, 8},
    Case{"zstd.tif", "rgb.png", io::ImageFormat::tiff, 3, 8},
    Case{"jpeg.tif", "jpeg.tif", io::ImageFormat::tiff, 3, 8, 2},
    Case{"deflate_grey.tif", "grey.png", io::ImageFormat::tiff, 1, 8},
    Case{"packbits_palette.tif", "palette.png", io::ImageFormat::tiff, 3, 8},
    Case{"cmyk.tif", "cmyk.tif", io::ImageFormat::tiff, 4, 8},
    Case{"min_is_white.tif", "grey.png", io::ImageFormat::tiff, 1, 8},
    Case{"infrared.tif", "rgb.png", io::ImageFormat::tiff, 4, 8},
    Case{"tiles16.tif", "rgb.png", io::ImageFormat::tiff, 3, 16},
    Case{"planes16.tif", "rgb.png", io::ImageFormat::tiff, 3, 16},
    Case{"overview.tif", "rgb.png", io::ImageFormat::tiff, 3, 8},
    Case{"rgb.bmp", "rgb.png", io::ImageFormat::bmp, 3, 8},
    Case{"rgb32.bmp", "rgb.png", io::ImageFormat::bmp, 3, 8},
    Case{"top_down.bmp", "rgb.png", io::ImageFormat::bmp, 3, 8},
    Case{"old.bmp", "rgb.png", io::ImageFormat::bmp, 3, 8},
    Case{"masks.bmp", "rgb.png", io::ImageFormat::bmp, 3, 8},
    Case{"palette8.bmp", "palette.png", io::ImageFormat::bmp, 3, 8},
    Case{"palette4.bmp", "palette.png", io::ImageFormat::bmp, 3, 8},
    Case{"grey1.bmp", "grey1.png", io::ImageFormat::bmp, 3, 8},
    Case{"p1.pbm", "grey1.png", io::ImageFormat::pnm, 1, 1},
    Case{"p2.pgm", "p2.pgm", io::ImageFormat::pnm, 1, 8},
    Case{"p3.ppm", "rgb.png", io::ImageFormat::pnm, 3, 8},
    Case{"p4.pbm", "grey1.png", io::ImageFormat::pnm, 1, 1},
    Case{"p5.pgm", "grey.png", io::ImageFormat::pnm, 1, 8},
    Case{"p6.ppm", "rgb.png", io::ImageFormat::pnm, 3, 8},
    Case{"p6_16.ppm", "rgb.png", io::ImageFormat::pnm, 3, 16},
};

io::Image decode(const std::string& name, const io::DecodeOptions& options) {
  return io::decode_image(bytes_of(fixture(name)), options);
}

/// Channel `c` of an image, as an image of one channel.
io::Image channel(const io::Image& image, int c) {
  io::Image one{image.width, image.height, 1, {}};
  for (auto i = static_cast<std::size_t>(c); i < image.pixels.size(); i += static_cast<std::size_t>(image.channels)) {
    one.pixels.push_back(image.pixels[i]);
  }
  return one;
}

std::string refusal(const std::string& content, const io::DecodeOptions& options = {}) {
  try {
    io::decode_image(bytes_of(content), options);
  } catch (const core::InputError& error) {
    return error.what();
  }
  return "decoded";
}

bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  MESSAGE(text);
  return false;
}

std::string replaced(const std::string& name, std::size_t offset, const std::string& part) {
  return fixture(name).replace(offset, part.size(), part);
}

/// The mean of the square of full-size pixels that each pixel at 1 / denominator stands for.
io::Image box_averaged(const io::Image& full, int denominator) {
  const auto side = [denominator](int n) { return (n + denominator - 1) / denominator; };
  io::Image small{side(full.width), side(full.height), full.channels, {}};
  for (int y = 0; y < small.height; ++y) {
    for (int x = 0; x < small.width; ++x) {
      for (int c = 0; c < full.channels; ++c) {
        int sum = 0, count = 0;
        for (int v = y * denominator; v < std::min((y + 1) * denominator, full.height); ++v) {
          for (int u = x * denominator; u < std::min((x + 1) * denominator, full.width); ++u, ++count) {
            sum += full.pixels[static_cast<std::size_t>((v * full.width + u) * full.channels + c)];
          }
        }
        small.pixels.push_back(static_cast<std::uint8_t>((sum + count / 2) / count));
      }
    }
  }
  return small;
}

double mean_difference(const io::Image& a, const io::Image& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.pixels.size(); ++i) sum += std::abs(a.pixels[i] - b.pixels[i]);
  return sum / static_cast<double>(a.pixels.size());
}

}  // namespace

TEST_CASE("TIFF, BMP and PNM decode to the pixels that Pillow gives") {
  for (const Case& test : kCases) {
    CAPTURE(test.name);
    const std::string content = fixture(test.name);
    const io::ImageInfo info = io::probe_image(bytes_of(content));
    CHECK(info.width == 37);
    CHECK(info.height == 29);
    CHECK(info.format == test.format);
    CHECK(info.channels == test.channels);
    CHECK(info.bits == test.bits);
    CHECK(difference(io::decode_image(bytes_of(content)), expected(test.reference + ".rgb")) <= test.tolerance);
  }
}

TEST_CASE("samples of JPEG, PNG and WebP as stored") {
  const auto check = [](const char* name, int channels, int bits) {
    CAPTURE(name);
    const io::ImageInfo info = io::probe_image(bytes_of(fixture(name)));
    CHECK(info.channels == channels);
    CHECK(info.bits == bits);
  };
  check("rgb.jpg", 3, 8);
  check("grey.jpg", 1, 8);
  check("cmyk.jpg", 4, 8);
  check("ycck.jpg", 4, 8);
  check("rgb.png", 3, 8);
  check("rgb16.png", 3, 16);
  check("grey.png", 1, 8);
  check("grey1.png", 1, 1);
  check("grey_alpha.png", 2, 8);
  check("rgba.png", 4, 8);
  check("palette.png", 3, 8);
  check("lossy.webp", 3, 8);
  check("lossless.webp", 4, 8);
}

TEST_CASE("one channel is Pillow's grey") {
  const io::Image grey = channel(expected("grey.png.rgb"), 0);
  for (const char* name :
       {"rgb.png", "rgba.png", "grey.png", "grey_alpha.png", "rgb16.png", "interlaced.png", "lzw.tif", "planes16.tif",
        "deflate_grey.tif", "min_is_white.tif", "rgb.bmp", "p6.ppm", "p5.pgm"}) {
    CAPTURE(name);
    const io::Image image = decode(name, {.channels = 1});
    CHECK(image.channels == 1);
    CHECK(difference(image, grey) == 0);
  }
  CHECK(difference(decode("grey.jpg", {.channels = 1}), channel(expected("grey.jpg.rgb"), 0)) <= 1);
  for (const char* name :
       {"rgb.jpg", "cmyk.jpg", "palette.png", "palette4.bmp", "packbits_palette.tif", "lossy.webp"}) {
    CAPTURE(name);
    const io::Image colour = decode(name, {});
    const io::Image image = decode(name, {.channels = 1});
    double worst = 0;
    for (std::size_t i = 0; i < image.pixels.size(); ++i) {
      const std::uint8_t* rgb = &colour.pixels[3 * i];
      worst = std::max(worst, std::abs(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] - image.pixels[i]));
    }
    CHECK(worst <= 0.51);
  }
}

TEST_CASE("other numbers of channels are those stored") {
  const io::Image rgb = expected("rgb.png.rgb"), grey = channel(expected("grey.png.rgb"), 0);
  io::Image dark = grey;
  for (std::uint8_t& value : dark.pixels) value = static_cast<std::uint8_t>(255 - value);

  const auto check_fourth = [&](const char* name, const io::Image& fourth) {
    CAPTURE(name);
    const io::Image image = decode(name, {.channels = 4});
    CHECK(image.channels == 4);
    for (int c = 0; c < 3; ++c) CHECK(difference(channel(image, c), channel(rgb, c)) == 0);
    CHECK(difference(channel(image, 3), fourth) == 0);
  };
  check_fourth("rgba.png", grey);
  check_fourth("infrared.tif", dark);
  CHECK(difference(channel(decode("lossless.webp", {.channels = 4}), 3), grey) == 0);

  const io::Image two = decode("grey_alpha.png", {.channels = 2});
  CHECK(two.channels == 2);
  CHECK(difference(channel(two, 0), grey) == 0);
  CHECK(difference(channel(two, 1), channel(rgb, 0)) == 0);

  const io::Image five = decode("channels5.tif", {.channels = 5});
  CHECK(five.channels == 5);
  for (int c = 0; c < 3; ++c) CHECK(difference(channel(five, c), channel(rgb, c)) == 0);
  CHECK(difference(channel(five, 3), dark) == 0);
  CHECK(difference(channel(five, 4), grey) == 0);
  CHECK(io::probe_image(bytes_of(fixture("channels5.tif"))).channels == 5);

  for (const int channels : {1, 3, 4}) {
    CHECK(contains(refusal(fixture("channels5.tif"), {.channels = channels}), "5 samples a pixel of no known colour"));
  }
  CHECK(contains(refusal(fixture("rgb.png"), {.channels = 4}), "3 samples a pixel, but 4 channels are wanted"));
  for (const char* name : {"grey.jpg", "rgb.jpg", "palette.png", "lossy.webp", "rgb32.bmp", "p5.pgm", "lzw.tif"}) {
    CAPTURE(name);
    CHECK(contains(refusal(fixture(name), {.channels = 4}), "but 4 channels are wanted"));
  }
}

TEST_CASE("a JPEG at a fraction of its size is near the mean of its pixels") {
  const io::Image large =
      io::resize_bicubic(io::decode_image(bytes_of(fixture("source.png"))), {0, 0, 12, 9}, 157, 119);
  const std::vector<std::byte> encoded = io::encode_jpeg(large, 95);
  for (const int channels : {1, 3}) {
    const io::Image full = io::decode_image(encoded, {.channels = channels});
    for (const int denominator : {2, 4, 8}) {
      CAPTURE(denominator);
      const io::Image image = io::decode_image(encoded, {.channels = channels, .denominator = denominator});
      const io::Image wanted = box_averaged(full, denominator);
      REQUIRE(image.width == wanted.width);
      REQUIRE(image.height == wanted.height);
      CHECK(image.channels == channels);
      // Chroma, of half the size, is smoothed in the whole decode and in the reduced one is not.
      CHECK(mean_difference(image, wanted) <= (channels == 1 ? 0.25 : 0.6));
      CHECK(difference(image, wanted) <= (channels == 1 ? 1 : 6));
    }
  }
  for (const std::string name : {"cmyk.jpg", "progressive.jpg", "sampling1x4.jpg"}) {
    CAPTURE(name);
    const io::Image image = decode(name, {.denominator = 4});
    CHECK(image.width == 10);
    CHECK(image.height == 8);
  }
  CHECK(difference(decode("rgb.png", {.denominator = 8}), expected("rgb.png.rgb")) == 0);
  const io::Image pixel = io::decode_image(io::encode_jpeg({1, 1, 3, {10, 20, 30}}, 95), {.denominator = 8});
  CHECK(pixel.width == 1);
  CHECK(pixel.height == 1);
}

TEST_CASE("16-bit samples over a range") {
  const io::Image high = expected("rgb.png.rgb");
  for (const std::array<int, 2> range : {std::array{0, 65534}, {10000, 50000}, {12345, 12346}, {65000, 65535}}) {
    CAPTURE(range[0]);
    io::Image wanted = high;
    for (int y = 0, i = 0; y < 29; ++y) {
      for (int x = 0; x < 37; ++x) {
        for (int c = 0; c < 3; ++c, ++i) {  // the low byte as make_fixtures.py chose it
          auto& value = wanted.pixels[static_cast<std::size_t>(i)];
          const double sample = std::clamp<double>(value * 256 + (x * 7 + y) % 256, range[0], range[1]);
          value = static_cast<std::uint8_t>(std::lround((sample - range[0]) * 255 / (range[1] - range[0])));
        }
      }
    }
    for (const char* name : {"rgb16.png", "tiles16.tif", "planes16.tif", "p6_16.ppm"}) {
      CAPTURE(name);
      CHECK(difference(decode(name, {.range16 = range}), wanted) == 0);
    }
  }
  CHECK(difference(decode("rgb.png", {.range16 = {5, 6}}), high) == 0);
}

TEST_CASE("options that make no sense are refused") {
  const std::string content = fixture("rgb.png");
  for (const io::DecodeOptions& options : {io::DecodeOptions{.channels = 0},
                                           {.denominator = 3},
                                           {.denominator = 0},
                                           {.range16 = {7, 7}},
                                           {.range16 = {-1, 7}},
                                           {.range16 = {0, 65536}},
                                           {.max_pixels = io::kMaxPixels + 1}}) {
    CHECK_THROWS_AS(io::decode_image(bytes_of(content), options), std::logic_error);
  }
}

TEST_CASE("the memory of an image is used again") {
  io::Image image = io::decode_image(bytes_of(fixture("rgb16.png")));
  const std::uint8_t* memory = image.pixels.data();
  const std::size_t capacity = image.pixels.capacity();
  const auto check = [&](const std::string& name, const io::DecodeOptions& options) {
    CAPTURE(name);
    io::decode_image(bytes_of(fixture(name)), options, image);
    CHECK(difference(image, decode(name, options)) == 0);
    CHECK(image.channels == options.channels);
    CHECK(image.pixels.data() == memory);
    CHECK(image.pixels.capacity() == capacity);
  };
  for (const Case& test : kCases) {
    for (const int channels : {1, 3}) check(test.name, {.channels = channels});
  }
  for (const char* name : {"rgb.jpg", "grey.jpg", "cmyk.jpg", "grey.png", "palette.png", "lossless.webp"}) {
    for (const int denominator : {8, 1}) check(name, {.denominator = denominator});
  }
}

TEST_CASE("a limit of pixels counts before a JPEG is reduced, and large memory is given back") {
  for (const char* name : {"rgb.jpg", "rgb.png", "lossy.webp", "jpeg.tif"}) {
    CAPTURE(name);
    const io::ImageInfo info = io::probe_image(bytes_of(fixture(name)));
    const std::int64_t pixels = std::int64_t{info.width} * info.height;
    CHECK_NOTHROW(decode(name, {.denominator = 8, .max_pixels = pixels}));
    CHECK_THROWS_WITH_AS(decode(name, {.denominator = 8, .max_pixels = pixels - 1}), doctest::Contains("too large"),
                         core::InputError);
  }
  io::Image image;
  image.pixels.reserve(65U << 20);
  io::decode_image(bytes_of(fixture("rgb.jpg")), {}, image);
  CHECK(image.pixels.capacity() < 1U << 20);
}

TEST_CASE("what a format may have but is not read is refused in a sentence") {
  CHECK(contains(refusal(fixture("pages.tif")), "The TIFF has several pages"));
  CHECK(contains(refusal(fixture("float.tif")), "floating-point samples: only unsigned integers are read"));
  CHECK(contains(refusal(fixture("one_bit.tif")), "samples of 1 bits: only 8 and 16 are read"));
  CHECK(contains(refusal(fixture("run_length.bmp")), "8 bits a pixel in encoding 1"));
  CHECK(contains(refusal(replaced("rgb.bmp", 28, {16, 0})), "16 bits a pixel in encoding 0"));
  CHECK(contains(refusal(replaced("masks.bmp", 54, {0, 1})), "32 bits a pixel in encoding 3"));
  // The first entries of infrared.tif: width, height, bits, compression, colours.
  const auto entry = [](int number) { return static_cast<std::size_t>(10 + 12 * number + 8); };
  CHECK(contains(refusal(replaced("infrared.tif", entry(3), {4, 0})), "compression 4"));
  CHECK(contains(refusal(replaced("infrared.tif", entry(4), {8, 0})), "colours of kind 8"));
}

TEST_CASE("damaged TIFF, BMP and PNM are refused in a sentence") {
  const auto entry = [](int number) { return static_cast<std::size_t>(10 + 12 * number + 8); };
  CHECK(contains(refusal(replaced("infrared.tif", entry(0), {0, 0x7F})), "The header claims 32512 x 29 pixels"));
  CHECK(contains(refusal(replaced("infrared.tif", entry(0), {0, 0, 0, 2})), "too large: 33554432 x 29"));
  CHECK(contains(refusal(fixture("infrared.tif").substr(0, 100)), "The TIFF is damaged"));
  CHECK(contains(refusal(fixture("channels5.tif").substr(0, 5000)), "more than the file can hold in its 5000 bytes"));
  CHECK(contains(refusal(replaced("jpeg.tif", 1500, std::string(400, '\0'))), "The TIFF is damaged"));

  CHECK(contains(refusal(fixture("rgb.bmp").substr(0, 3000)), "The BMP is damaged: the file ends early"));
  CHECK(contains(refusal(replaced("rgb.bmp", 10, {0, 0, 0, 1})), "The BMP is damaged: the file ends early"));
  CHECK(contains(refusal(replaced("rgb.bmp", 14, {13})), "a header of 13 bytes"));
  CHECK(contains(refusal(replaced("rgb.bmp", 22, {0, 0, 0, -128})), "too large: 37 x 2147483648"));
  CHECK(contains(refusal(replaced("palette4.bmp", 46, {2})), "The BMP is damaged: a pixel has colour"));
  CHECK(contains(refusal(replaced("palette4.bmp", 46, {17})), "a palette of 17 colours"));

  CHECK(contains(refusal("P5 3 3 255 12345678"), "The PNM is damaged: the file ends early"));
  CHECK(contains(refusal("P5 20000 20000 255 1"), "The PNM is damaged: the file ends early"));
  CHECK(contains(refusal("P5 3000000 3000000 255 1"), "too large: 3000000 x 3000000"));
  CHECK(contains(refusal("P5 99999999999999999999 1 255 1"), "a number is too large"));
  CHECK(contains(refusal("P5 0 1 255 1"), "The image has no pixels (0 x 1)"));
  CHECK(contains(refusal("P5 -1 1 255 1"), "something else stands where a number should"));
  CHECK(contains(refusal("P5 1 1 0 1"), "its white is not between 1 and 65535"));
  CHECK(contains(refusal("P2 1 1 100 101"), "a sample is lighter than white"));
  CHECK(contains(refusal("P1 1 1 2"), "a sample is lighter than white"));
  CHECK(contains(refusal("P2 1 1 100 # no end"), "the file ends early"));
  CHECK(contains(refusal("P6 1 1 255x123"), "no blank comes after a number"));
}

TEST_CASE("every truncation of TIFF, BMP and PNM is noticed") {
  for (const Case& test : kCases) {
    std::string whole = fixture(test.name);
    if (test.name == "overview.tif") whole.resize(3400);  // the rest is the smaller copy
    for (std::size_t length = 0; length + 4 < whole.size(); length += 1 + length / 64) {
      CAPTURE(test.name);
      CAPTURE(length);
      CHECK_FALSE(try_decode(whole.substr(0, length)).has_value());
    }
  }
}
