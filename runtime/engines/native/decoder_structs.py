"""What the library takes of decoders: structs and enums of src/edgeloop_tokens.h, on how whole tokens are run."""

from __future__ import annotations

from ctypes import c_char_p, c_double, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from enum import IntEnum

from .library import Struct


class Rule(IntEnum):
    """When a token leaves."""

    NEVER = 0
    DEPTH = 1
    LATENT = 2
    GATE = 3
    PROBE = 4
    EXPERT = 5
    TOKEN = 6


class Skipped(IntEnum):
    """What becomes of K/V of the depths that a token did not run."""

    NONE = 0
    EXACT = 1
    PROPAGATE = 2
    LATEST = 3
    SKIP = 4


class Squash(IntEnum):
    """What a router's score goes through."""

    SIGMOID = 0
    TANH = 1
    NONE = 2
    SOFTMAX = 3


class PolicyStruct(Struct):
    """el_policy."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("rule", c_uint32),
        ("depths", c_uint32),
        ("stop", c_uint32),
        ("skipped", c_uint32),
        ("shared", c_uint32),
        ("squash", c_uint32),
        ("gated", c_uint32),
        ("everyone", c_uint32),
        ("hidden_count", c_uint32),
        ("hidden_width", c_uint32),
        ("temperature", c_float),
        ("alpha", c_float),
        ("thresholds", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("hidden", c_void_p),
        ("auxiliary", c_void_p),
        ("auxiliary_hidden", c_void_p),
        ("capacity", c_void_p),
    )


class SamplingStruct(Struct):
    """el_sampling."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("top_k", c_uint32),
        ("temperature", c_double),
        ("top_p", c_double),
        ("min_p", c_double),
        ("seed", c_uint64),
    )


class SequenceStruct(Struct):
    """el_sequence."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("depths", c_uint32),
        ("cached", c_uint32),
        ("width", c_uint32),
        ("filled", c_void_p),
        ("held_counts", c_void_p),
        ("waiting_counts", c_void_p),
        ("held", c_void_p),
        ("waiting_positions", c_void_p),
        ("waiting", c_void_p),
    )


class CountsStruct(Struct):
    """el_counts."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("depths", c_uint32),
        ("tokens", c_uint64),
        ("nanoseconds", c_uint64),
        ("block_calls", c_uint64),
        ("rows", c_uint64),
        ("decisions", c_uint64),
        ("decide_nanoseconds", c_uint64),
        ("block_nanoseconds", c_void_p),
        ("depth_calls", c_void_p),
    )


class Chooses(IntEnum):
    """What chooses the next token."""

    HOST = 0
    DECODER = 1
    NOBODY = 2


class TurnStruct(Struct):
    """el_turn."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("chooses", c_uint32),
        ("decoder", c_void_p),
        ("text", c_void_p),
        ("text_count", c_uint32),
        ("most", c_uint32),
        ("token", c_int64),
        ("depths", c_uint32),
        ("code", c_int32),
        ("logits", c_void_p),
        ("error", c_char_p),
        ("ends", c_void_p),
        ("ends_count", c_uint32),
        ("made", c_uint32),
        ("tokens", c_void_p),
        ("ran", c_void_p),
    )


STRUCTS = {
    "el_policy": PolicyStruct,
    "el_sampling": SamplingStruct,
    "el_sequence": SequenceStruct,
    "el_counts": CountsStruct,
    "el_turn": TurnStruct,
}
