#include <sys/resource.h>

#include <array>
#include <map>
#include <stdexcept>

#include "core/random.hpp"
#include "image_fixtures.hpp"
#include "testing.hpp"

using namespace allosaur;
using testing::bytes_of;
using testing::difference;
using testing::expected;
using testing::fixture;
using testing::try_decode;

namespace {

constexpr std::array kFixtures = {"rgb.jpg",         "progressive.jpg", "grey.jpg",     "cmyk.jpg",  "ycck.jpg",
                                  "sampling1x4.jpg", "rgb.png",         "grey.png",     "grey1.png", "palette.png",
                                  "rgba.png",        "lossy.webp",      "lossless.webp"};

io::Image gradient(int width, int height, int channels) {
  io::Image image{width, height, channels, {}};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < channels; ++c) image.pixels.push_back(static_cast<std::uint8_t>(3 * x + 2 * y + 40 * c));
    }
  }
  return image;
}

}  // namespace

TEST_CASE("images decode to the pixels that Pillow gives") {
  for (const std::string name : kFixtures) {
    CAPTURE(name);
    const io::Image image = io::decode_image(bytes_of(fixture(name)));
    CHECK(image.channels == 3);
    CHECK(difference(image, expected(name + ".rgb")) <= (name == "lossy.webp" ? 2 : name.ends_with(".jpg") ? 1 : 0));
    const io::ImageInfo info = io::probe_image(bytes_of(fixture(name)));
    CHECK(info.width == 37);
    CHECK(info.height == 29);
    CHECK(info.format == (name.ends_with(".jpg")   ? io::ImageFormat::jpeg
                          : name.ends_with(".png") ? io::ImageFormat::png
                                                   : io::ImageFormat::webp));
  }
}

TEST_CASE("16-bit and interlaced PNG") {
  const io::Image plain = expected("rgb.png.rgb");
  CHECK(difference(io::decode_image(bytes_of(fixture("rgb16.png"))), plain) == 0);
  CHECK(difference(io::decode_image(bytes_of(fixture("interlaced.png"))), plain) == 0);
}

TEST_CASE("grey PNG as stored") {
  std::vector<std::uint16_t> depth(13 * 7);
  for (std::size_t i = 0; i < depth.size(); ++i) depth[i] = static_cast<std::uint16_t>(719 * i);
  const std::vector<std::byte> encoded = io::encode_grey16_png(depth, 13, 7);
  int width = 0, height = 0;
  CHECK(io::decode_grey_png(encoded, width, height) == depth);
  CHECK(width == 13);
  CHECK(height == 7);
  CHECK(io::decode_image(encoded).pixels[3 * 50] == depth[50] >> 8);

  SUBCASE("a palette's indices, not its colours") {
    const std::vector<std::uint16_t> labels = io::decode_grey_png(bytes_of(fixture("palette.png")), width, height);
    const io::Image colours = expected("palette.png.rgb");
    std::map<std::uint16_t, std::uint8_t> red;
    for (std::size_t i = 0; i < labels.size(); ++i) {
      CHECK(red.try_emplace(labels[i], colours.pixels[3 * i]).first->second == colours.pixels[3 * i]);
    }
    CHECK(red.rbegin()->first < 16);
  }
  SUBCASE("one bit") {
    const std::vector<std::uint16_t> bits = io::decode_grey_png(bytes_of(fixture("grey1.png")), width, height);
    CHECK(*std::max_element(bits.begin(), bits.end()) == 1);
  }
  SUBCASE("colour is refused") {
    CHECK_THROWS_AS(io::decode_grey_png(bytes_of(fixture("rgb.png")), width, height), core::InputError);
    CHECK_THROWS_AS(io::decode_grey_png(bytes_of(fixture("rgb.jpg")), width, height), core::InputError);
  }
}

TEST_CASE("encoding") {
  for (const int channels : {1, 3}) {
    const io::Image image = gradient(31, 18, channels);
    io::Image rgb = image;
    if (channels == 1) {
      rgb = {31, 18, 3, {}};
      for (const std::uint8_t value : image.pixels) rgb.pixels.insert(rgb.pixels.end(), 3, value);
    }
    CHECK(difference(io::decode_image(io::encode_png(image)), rgb) == 0);
    CHECK(difference(io::decode_image(io::encode_jpeg(image, 100)), rgb) <= 8);
  }
  CHECK_THROWS_AS(io::encode_png({3, 3, 3, {}}), std::logic_error);
  CHECK_THROWS_AS(io::encode_jpeg(gradient(4, 4, 3), 101), core::InputError);
}

TEST_CASE("one pixel") {
  const io::Image pixel{1, 1, 3, {10, 20, 30}};
  CHECK(io::decode_image(io::encode_png(pixel)).pixels == pixel.pixels);
  CHECK(io::decode_image(io::encode_jpeg(pixel, 95)).pixels.size() == 3);
  const io::Image large = io::resize_bicubic(pixel, 5, 4);
  for (std::size_t i = 0; i < large.pixels.size(); ++i) CHECK(large.pixels[i] == pixel.pixels[i % 3]);
}

TEST_CASE("what is not an image is refused with a reason") {
  const auto message = [](const std::string& content) -> std::string {
    try {
      io::decode_image(bytes_of(content));
    } catch (const core::InputError& error) {
      return error.what();
    }
    return "decoded";
  };
  CHECK(message("") == "The image file is empty.");
  CHECK(message(std::string(1000, '\0')).find("neither JPEG") != std::string::npos);
  CHECK(message("{\"not\": \"an image\"}").find("neither JPEG") != std::string::npos);
  CHECK(message(fixture("rgb.jpg").substr(0, 900)).find("JPEG is damaged: Premature end") != std::string::npos);
  CHECK_THROWS_AS(io::probe_image({}), core::InputError);
}

TEST_CASE("a good image decodes after a damaged one") {
  for (const std::string name : kFixtures) {
    for (const std::size_t kept : {std::size_t{30}, fixture(name).size() / 3, fixture(name).size() - 5}) {
      CHECK_FALSE(try_decode(fixture(name).substr(0, kept)).has_value());
      CHECK(try_decode(fixture(name)).has_value());
    }
  }
}

TEST_CASE("every truncation is noticed") {
  for (const std::string name : kFixtures) {
    const std::string whole = fixture(name);
    for (std::size_t length = 0; length < whole.size(); length += 1 + length / 64) {
      CAPTURE(name);
      CAPTURE(length);
      CHECK_FALSE(try_decode(whole.substr(0, length)).has_value());
    }
  }
}

TEST_CASE("a header that claims a huge image is refused before memory is taken") {
  std::string png = fixture("rgb.png");
  png.replace(16, 8, std::string("\x00\x07\x00\x00\x00\x07\x00\x00", 8));
  CHECK_THROWS_WITH_AS(io::probe_image(bytes_of(png)), doctest::Contains("too large: 458752 x 458752"),
                       core::InputError);
  CHECK_FALSE(try_decode(png).has_value());
  std::string jpeg = fixture("rgb.jpg");
  jpeg.replace(jpeg.find("\xFF\xC0") + 5, 4, "\xFF\x00\xFF\x00", 4);
  CHECK_THROWS_WITH_AS(io::decode_image(bytes_of(jpeg)), doctest::Contains("too large: 65280 x 65280"),
                       core::InputError);
}

TEST_CASE("a header that claims more pixels than its bytes can hold is refused") {
  const auto check = [](std::string content, std::size_t offset, const std::string& sides) {
    content.replace(offset, sides.size(), sides);
    CHECK_THROWS_WITH_AS(io::decode_image(bytes_of(content)), doctest::Contains("more than the file can hold"),
                         core::InputError);
  };
  const std::string jpeg = fixture("rgb.jpg"), webp = fixture("lossy.webp");
  check(jpeg, jpeg.find("\xFF\xC0") + 5, {16, 0, 16, 0});
  check(webp, webp.find("\x9D\x01\x2A") + 3, {0, 16, 0, 16});
}

TEST_CASE("texts of a PNG take no memory") {
  const auto peak_mebibytes = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss / 1024;
  };
  std::string png = fixture("text_bomb.png");
  const std::size_t chunk = png.find("zTXt") - 4, end = png.find("IDAT") - 4;
  const std::string text = png.substr(chunk, end - chunk);
  for (int i = 0; i < 200; ++i) png.insert(chunk, text);
  const auto before = peak_mebibytes();
  CHECK(io::decode_image(bytes_of(png)).pixels == std::vector<std::uint8_t>(3, 7));
  CHECK(peak_mebibytes() - before < 100);
}

TEST_CASE("flipped bits give an image or an InputError, never a crash") {
  int decoded = 0, refused = 0;
  for (const std::string name : kFixtures) {
    const std::string whole = fixture(name);
    for (std::uint64_t seed = 0; seed < 150; ++seed) {
      core::Random random(seed, core::Purpose::demo, static_cast<std::uint64_t>(testing::world().rank()));
      std::string flipped = whole;
      for (std::int64_t flips = 1 + random.below(4); flips > 0; --flips) {
        auto& byte = flipped[static_cast<std::size_t>(random.below(std::ssize(flipped)))];
        byte = static_cast<char>(byte ^ (1 << random.below(8)));
      }
      const auto image = try_decode(flipped);
      ++(image ? decoded : refused);
      if (image) CHECK(std::int64_t(image->pixels.size()) == std::int64_t{image->width} * image->height * 3);
    }
  }
  CHECK(decoded > 0);
  CHECK(refused > 0);
}

TEST_CASE("resizing gives Pillow's values") {
  const io::Image source = io::decode_image(bytes_of(fixture("source.png")));
  const auto check = [&](const char* name, const io::Box& box) {
    const io::Image wanted = expected(std::string("source_") + name + ".rgb");
    CAPTURE(name);
    CHECK(difference(io::resize_bicubic(source, box, wanted.width, wanted.height), wanted) == 0);
  };
  const io::Box whole{0, 0, 61, 47};
  check("down", whole);
  check("up", whole);
  check("mixed", whole);
  check("crop", {13, 9, 27, 21});
  check("one", {5, 6, 1, 1});
}

TEST_CASE("resizing of any size, one channel or three") {
  const io::Image colour = gradient(50, 37, 3);
  for (const int size : {1, 2, 15, 16, 17, 33, 50, 70}) {
    const io::Image resized = io::resize_bicubic(colour, size, size + 3);
    for (int c = 0; c < 3; ++c) {  // each channel by itself gives the same
      io::Image channel{50, 37, 1, {}}, wanted{size, size + 3, 1, {}};
      for (std::size_t i = static_cast<std::size_t>(c); i < colour.pixels.size(); i += 3)
        channel.pixels.push_back(colour.pixels[i]);
      for (std::size_t i = static_cast<std::size_t>(c); i < resized.pixels.size(); i += 3)
        wanted.pixels.push_back(resized.pixels[i]);
      CHECK(difference(io::resize_bicubic(channel, size, size + 3), wanted) == 0);
    }
  }
  CHECK(difference(io::resize_bicubic(colour, 50, 37), colour) == 0);
}

TEST_CASE("resizing a fractional box, and boxes that are not inside") {
  io::Image flat{20, 20, 3, std::vector<std::uint8_t>(1200, 77)};
  CHECK(io::resize_bicubic(flat, {2.25, 3.5, 10.5, 16.5}, 7, 9).pixels == std::vector<std::uint8_t>(7 * 9 * 3, 77));
  CHECK_THROWS_AS(io::resize_bicubic(flat, {10, 10, 11, 5}, 4, 4), std::logic_error);
  CHECK_THROWS_AS(io::resize_bicubic(flat, {-1, 0, 5, 5}, 4, 4), std::logic_error);
  CHECK_THROWS_AS(io::resize_bicubic(flat, {0, 0, 0, 5}, 4, 4), std::logic_error);
}
