// Text: Native.java's functions over el_text, of a model or of a text.lanes, and el_writer.
#include "jni_values.h"

namespace edgeloop_jni {
namespace {

el_text* words_of(jlong handle) { return reinterpret_cast<el_text*>(handle); }
el_writer* writer_of(jlong handle) { return reinterpret_cast<el_writer*>(handle); }

jlong open_text(JNIEnv* env, jclass, jlong model) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    el_text* text = nullptr;
    const int code = el_text_open(reinterpret_cast<el_model*>(model), &text, error);
    if (code == EL_USAGE) return jlong(0);  // the file has none
    check(code, error);
    return reinterpret_cast<jlong>(text);
  });
}

jlong read_text(JNIEnv* env, jclass, jbyteArray path) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    const std::string file = text_of(env, path);
    el_text* text = nullptr;
    check(el_text_read(file.c_str(), &text, error), error);
    return reinterpret_cast<jlong>(text);
  });
}

void close_text(JNIEnv*, jclass, jlong text) { el_text_close(words_of(text)); }

jlongArray text_ends(JNIEnv* env, jclass, jlong text) {
  return guarded(env, [&] {
    const auto ids = whole<std::vector<int64_t>>([&](int64_t* into, size_t room, size_t* count, char* error) {
      return el_text_ends(words_of(text), into, room, count, error);
    });
    return java_numbers(env, ids.data(), ids.size());
  });
}

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

jbyteArray render_text(JNIEnv* env, jclass, jlong text, jobjectArray texts, jint flags) {
  return guarded(env, [&] {
    const std::vector<std::string> given = texts_of(env, texts);
    const std::vector<el_message> messages = messages_of(given);
    const auto found = whole<std::string>([&](char* into, size_t room, size_t* count, char* error) {
      return el_text_render(words_of(text), messages.data(), uint32_t(messages.size()), uint32_t(flags), into, room,
          count, error);
    });
    return java_bytes(env, found.data(), found.size());
  });
}

jlong new_writer(JNIEnv* env, jclass, jlong text, jlongArray prompt, jobjectArray stops) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    const std::vector<int64_t> before = ids_of(env, prompt);
    const std::vector<std::string> texts = texts_of(env, stops);
    std::vector<const char*> given;
    for (const std::string& each : texts) given.push_back(each.c_str());
    el_writer* writer = nullptr;
    check(el_writer_new(words_of(text), before.data(), before.size(), given.data(), uint32_t(given.size()), &writer, error),
        error);
    return reinterpret_cast<jlong>(writer);
  });
}

void free_writer(JNIEnv*, jclass, jlong writer) { el_writer_free(writer_of(writer)); }

jboolean push(JNIEnv* env, jclass, jlong writer, jlong token, jobjectArray found) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    const char* utf8 = nullptr;
    size_t bytes = 0;
    uint32_t stopped = 0;
    check(el_writer_push(writer_of(writer), token, &utf8, &bytes, &stopped, error), error);
    env->SetObjectArrayElement(found, 0, java_bytes(env, utf8, bytes));
    return jboolean(stopped != 0);
  });
}

jbyteArray end_writer(JNIEnv* env, jclass, jlong writer) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    const char* utf8 = nullptr;
    size_t bytes = 0;
    check(el_writer_end(writer_of(writer), &utf8, &bytes, error), error);
    return java_bytes(env, utf8, bytes);
  });
}

}  // namespace

const std::vector<JNINativeMethod> TEXT_METHODS = {
    method("openText", "(J)J", open_text),
    method("readText", "([B)J", read_text),
    method("closeText", "(J)V", close_text),
    method("textEnds", "(J)[J", text_ends),
    method("encode", "(J[BZ)[J", encode),
    method("decode", "(J[JZ)[B", decode),
    method("renderText", "(J[[BI)[B", render_text),
    method("newWriter", "(J[J[[B)J", new_writer),
    method("freeWriter", "(J)V", free_writer),
    method("push", "(JJ[[B)Z", push),
    method("endWriter", "(J)[B", end_writer),
};

}  // namespace edgeloop_jni
