"""The C target: a program as one self-contained C99 source, to be compiled and called without fastopt."""
