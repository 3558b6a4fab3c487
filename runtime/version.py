"""The version of edgeloop; nothing else states it."""

VERSION = "0.2.0"
