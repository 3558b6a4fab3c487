// The functions of the table of ops (ops.h), by the files that they are in.
#pragma once

#include "ops.h"

namespace edgeloop {

void embed(const Piece&, const Node&);  // rows.cpp
void norm(const Piece&, const Node&);
void rotate(const Piece&, const Node&);
void concat(const Piece&, const Node&);
void slice(const Piece&, const Node&);
void shift(const Piece&, const Node&);
void act(const Piece&, const Node&);  // elementwise.cpp
void add(const Piece&, const Node&);
void mul(const Piece&, const Node&);
void scale(const Piece&, const Node&);
void softcap(const Piece&, const Node&);
void quantize(const Piece&, const Node&);  // products.cpp
void low(const Piece&, const Node&);
void linear(const Piece&, const Node&);
void keys(const Piece&, const Node&);  // memory.cpp
void values(const Piece&, const Node&);

}  // namespace edgeloop
