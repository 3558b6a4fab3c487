#!/bin/sh
# CEdgeloop.xcframework, on a Mac with Xcode and Python 3.9 or newer: apps/ios/xcframework.sh
# The lane engine as a static library for each kind of device, with its header files as a module for Swift. Which files, and
# with which flags, the engine's own build says.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
native=$(cd "$here/../../runtime/engines/native" && pwd)
scratch=$(mktemp -d "$here/.xcframework-XXXXXX")
trap 'rm -rf "$scratch"' EXIT

archive() { # SDK TRIPLE
  objects=$scratch/$2
  mkdir "$objects"
  compiler="xcrun -sdk $1 clang++ -target $2"
  # shellcheck disable=SC2086  # a compiler is several words, and so are flags
  python3 "$native/build.py" --sources darwin "${2%%-*}" $compiler > "$objects/sources"
  while IFS= read -r line; do
    source=${line%%|*}
    flags=$(printf %s "${line#*|}" | tr '|' ' ')
    name=$(printf %s "${source#"$native/src/"}" | tr / -)
    # shellcheck disable=SC2086
    $compiler $flags -c "$source" -o "$objects/$name.o" < /dev/null
  done < "$objects/sources"
  xcrun libtool -static -o "$objects/libedgeloop.a" "$objects"/*.o
}

fat() { # SDK TRIPLE …
  sdk=$1
  shift
  mkdir "$scratch/$sdk"
  for triple; do
    archive "$sdk" "$triple"
    archives="${archives:-} $scratch/$triple/libedgeloop.a"
  done
  # shellcheck disable=SC2086
  xcrun lipo -create $archives -output "$scratch/$sdk/libedgeloop.a"
  archives=
}

mkdir "$scratch/include"
cp "$native"/src/edgeloop*.h "$scratch/include"
printf 'module CEdgeloop {\n  header "edgeloop.h"\n  link "c++"\n  export *\n}\n' > "$scratch/include/module.modulemap"
fat iphoneos arm64-apple-ios18.0
fat iphonesimulator arm64-apple-ios18.0-simulator x86_64-apple-ios18.0-simulator
fat macosx arm64-apple-macos15.0 x86_64-apple-macos15.0
set --
for sdk in iphoneos iphonesimulator macosx; do
  set -- "$@" -library "$scratch/$sdk/libedgeloop.a" -headers "$scratch/include"
done
xcodebuild -create-xcframework "$@" -output "$scratch/CEdgeloop.xcframework"
rm -rf "$here/CEdgeloop.xcframework"
mv "$scratch/CEdgeloop.xcframework" "$here/CEdgeloop.xcframework"
