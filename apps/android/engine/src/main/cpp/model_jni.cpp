// Models, and the text of models: Native.java's functions over el_model and el_text.
#include "jni_values.h"

namespace edgeloop_jni {
namespace {

el_model* model_of(jlong handle) { return reinterpret_cast<el_model*>(handle); }
el_text* words_of(jlong handle) { return reinterpret_cast<el_text*>(handle); }

void check_abi(JNIEnv* env, jclass) {
  guarded(env, [] {
    if (el_abi() != EL_ABI)
      throw Error{EL_USAGE, "libedgeloop has interface " + std::to_string(el_abi()) + ", wanted " +
                                std::to_string(EL_ABI) + ": build both from one version"};
  });
}

jlong open(JNIEnv* env, jclass, jbyteArray path, jint threads, jboolean floats, jbyteArray kernels) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    const std::string file = text_of(env, path), named = text_of(env, kernels);
    auto options = sized<el_open_options>();
    options.activations = floats ? EL_ACTIVATIONS_FLOAT : EL_ACTIVATIONS_INT8;
    options.threads = uint32_t(threads);
    options.kernels = named.empty() ? nullptr : named.c_str();
    el_model* model = nullptr;
    check(el_open(file.c_str(), &options, &model, error), error);
    return reinterpret_cast<jlong>(model);
  });
}

void close(JNIEnv*, jclass, jlong model) { el_close(model_of(model)); }

el_info info_of(jlong model) {
  char error[EL_ERROR_SIZE];
  auto info = sized<el_info>();
  check(el_model_info(model_of(model), &info, error), error);
  return info;
}

el_about about_of(jlong model) {
  char error[EL_ERROR_SIZE];
  auto about = sized<el_about>();
  check(el_model_about(model_of(model), &about, error), error);
  return about;
}

jlongArray info(JNIEnv* env, jclass, jlong model) {
  return guarded(env, [&] {
    const el_info i = info_of(model);
    const el_about a = about_of(model);
    return java_numbers(env, {i.depths, i.vocab_size, i.context_length, i.threads, int64_t(i.file_bytes), a.turns,
                                 a.system, a.thinking});
  });
}

jobjectArray names(JNIEnv* env, jclass, jlong model) {
  return guarded(env, [&] {
    const el_about a = about_of(model);
    std::vector<std::string> found = {info_of(model).kernels, a.name};
    found.insert(found.end(), a.exits, a.exits + a.exits_count);
    return java_texts(env, found);
  });
}

jlongArray ends(JNIEnv* env, jclass, jlong model) {
  return guarded(env, [&] {
    const el_about a = about_of(model);
    return java_numbers(env, a.ends, a.ends_count);
  });
}

jlong open_text(JNIEnv* env, jclass, jlong model) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    el_text* text = nullptr;
    const int code = el_text_open(model_of(model), &text, error);
    if (code == EL_USAGE) return jlong(0);  // the file has none
    check(code, error);
    return reinterpret_cast<jlong>(text);
  });
}

void close_text(JNIEnv*, jclass, jlong text) { el_text_close(words_of(text)); }

jlongArray encode(JNIEnv* env, jclass, jlong text, jbyteArray utf8, jboolean add_special) {
  return guarded(env, [&] {
    const std::string given = bytes_of(env, utf8);
    const auto ids = whole<std::vector<int64_t>>([&](int64_t* into, size_t room, size_t* count, char* error) {
      return el_encode(words_of(text), given.data(), given.size(), add_special, into, room, count, error);
    });
    return java_numbers(env, ids.data(), ids.size());
  });
}

jbyteArray decode(JNIEnv* env, jclass, jlong text, jlongArray ids, jboolean skip_special) {
  return guarded(env, [&] {
    const std::vector<int64_t> given = ids_of(env, ids);
    const auto found = whole<std::string>([&](char* into, size_t room, size_t* count, char* error) {
      return el_decode(words_of(text), given.data(), given.size(), skip_special, into, room, count, error);
    });
    return java_bytes(env, found.data(), found.size());
  });
}

jbyteArray render(JNIEnv* env, jclass, jlong model, jobjectArray texts, jint flags) {
  return guarded(env, [&] {
    const std::vector<std::string> given = texts_of(env, texts);
    const std::vector<el_message> messages = messages_of(given);
    const auto found = whole<std::string>([&](char* into, size_t room, size_t* count, char* error) {
      return el_render(model_of(model), messages.data(), uint32_t(messages.size()), uint32_t(flags), into, room, count,
          error);
    });
    return java_bytes(env, found.data(), found.size());
  });
}

}  // namespace

const std::vector<JNINativeMethod> MODEL_METHODS = {
    method("checkAbi", "()V", check_abi),
    method("open", "([BIZ[B)J", open),
    method("close", "(J)V", close),
    method("info", "(J)[J", info),
    method("names", "(J)[[B", names),
    method("ends", "(J)[J", ends),
    method("openText", "(J)J", open_text),
    method("closeText", "(J)V", close_text),
    method("encode", "(J[BZ)[J", encode),
    method("decode", "(J[JZ)[B", decode),
    method("render", "(J[[BI)[B", render),
};

}  // namespace edgeloop_jni
