// How words become tokens.
#pragma once

#include <vector>

#include "text.h"

namespace edgeloop::text {

constexpr size_t FEW = 48;  // tokens: below, a queue costs more than it saves

// Each appends the tokens of a word.
void bpe(const Text& text, Bytes word, std::vector<uint32_t>& ids);
void unigram(const Text& text, Bytes word, std::vector<uint32_t>& ids);
void word_pieces(const Text& text, Bytes word, std::vector<uint32_t>& ids);
void word_level(const Text& text, Bytes word, std::vector<uint32_t>& ids);

}  // namespace edgeloop::text
