// Conversations: Native.java's functions over el_context.
#include "jni_values.h"

namespace edgeloop_jni {
namespace {

el_context* context_of(jlong handle) { return reinterpret_cast<el_context*>(handle); }

// A count of Java's, which has no unsigned numbers.
uint32_t count_of(jint value, const char* name) {
  if (value < 0) throw Error{EL_USAGE, "found " + std::to_string(value) + " " + name + ", wanted 0 or more"};
  return uint32_t(value);
}

jlong new_context(JNIEnv* env, jclass, jlong model, jlong text, jint capacity, jint kv, jboolean drafts, jint think,
    jint answer_room, jbyteArray exit, jbyteArray skipped_kv) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    const std::string rule = text_of(env, exit), skipped = text_of(env, skipped_kv);
    auto options = sized<el_context_options>();
    options.capacity = count_of(capacity, "tokens");
    options.kv = uint32_t(kv);
    options.drafts = drafts ? EL_DRAFTS_AUTO : EL_DRAFTS_NEVER;
    options.think = uint32_t(think);
    options.answer_room = count_of(answer_room, "tokens");
    options.exit = rule.empty() ? nullptr : rule.c_str();
    options.skipped_kv = skipped.empty() ? nullptr : skipped.c_str();
    el_context* made = nullptr;
    check(el_context_new(reinterpret_cast<el_model*>(model), reinterpret_cast<el_text*>(text), &options, &made, error),
        error);
    return reinterpret_cast<jlong>(made);
  });
}

void free_context(JNIEnv*, jclass, jlong context) { el_context_free(context_of(context)); }

void append(JNIEnv* env, jclass, jlong context, jlongArray ids) {
  guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    const std::vector<int64_t> given = ids_of(env, ids);
    check(el_context_append(context_of(context), given.data(), given.size(), error), error);
  });
}

void text(JNIEnv* env, jclass, jlong context, jbyteArray utf8) {
  guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    const std::string given = bytes_of(env, utf8);
    check(el_context_text(context_of(context), given.data(), given.size(), error), error);
  });
}

void say(JNIEnv* env, jclass, jlong context, jbyteArray role, jbyteArray content) {
  guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    const std::string by = text_of(env, role), said = text_of(env, content);
    check(el_context_say(context_of(context), by.c_str(), said.c_str(), error), error);
  });
}

void chat(JNIEnv* env, jclass, jlong context, jobjectArray texts) {
  guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    const std::vector<std::string> given = texts_of(env, texts);
    const std::vector<el_message> messages = messages_of(given);
    check(el_context_chat(context_of(context), messages.data(), uint32_t(messages.size()), error), error);
  });
}

// Who gets the tokens of an answer.
struct Listener {
  JNIEnv* env;
  jobject sink;
  jmethodID piece;
};

// Called by C: a Java exception stays pending, and ends the answer.
int on_piece(void* user, const el_piece* piece) {
  const Listener& to = *static_cast<Listener*>(user);
  jbyteArray text = to.env->NewByteArray(jsize(piece->bytes));
  if (!text) return 1;
  if (piece->bytes) to.env->SetByteArrayRegion(text, 0, jsize(piece->bytes), reinterpret_cast<const jbyte*>(piece->utf8));
  const jboolean more = to.env->CallBooleanMethod(
      to.sink, to.piece, text, jlong(piece->token), jint(piece->depth), jlong(piece->nanoseconds));
  to.env->DeleteLocalRef(text);
  return to.env->ExceptionCheck() || !more;
}

jlongArray answer(JNIEnv* env, jclass, jlong context, jint most, jboolean endless, jobjectArray stops,
    jdouble temperature, jint top_k, jdouble top_p, jdouble min_p, jlong seed, jobject sink) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    const std::vector<std::string> texts = texts_of(env, stops);
    std::vector<const char*> pointers;
    for (const std::string& each : texts) pointers.push_back(each.c_str());
    auto sampling = sized<el_sampling>();
    sampling.temperature = temperature;
    sampling.top_k = count_of(top_k, "tokens as top_k");
    sampling.top_p = top_p;
    sampling.min_p = min_p;
    sampling.seed = uint64_t(seed);
    auto options = sized<el_answer_options>();
    options.max_tokens = count_of(most, "tokens");
    options.flags = endless ? EL_ANSWER_ENDLESS : 0;
    options.stops_count = uint32_t(pointers.size());
    options.stops = pointers.data();
    options.sampling = &sampling;
    Listener to = {env, sink, env->GetMethodID(env->GetObjectClass(sink), "piece", "([BJIJ)Z")};
    if (!to.piece) throw Pending();
    auto found = sized<el_answer>();
    const int code = el_context_answer(context_of(context), &options, on_piece, &to, &found, error);
    if (env->ExceptionCheck()) throw Pending();
    check(code, error);
    return java_numbers(env, {found.tokens, found.why, found.prompt_tokens, found.forgotten,
                                 int64_t(found.prompt_nanoseconds), int64_t(found.first_nanoseconds),
                                 int64_t(found.nanoseconds)});
  });
}

void stop(JNIEnv*, jclass, jlong context) { el_context_stop(context_of(context)); }

jlongArray length(JNIEnv* env, jclass, jlong context) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    size_t tokens = 0, messages = 0;
    check(el_context_length(context_of(context), &tokens, &messages, error), error);
    return java_numbers(env, {int64_t(tokens), int64_t(messages)});
  });
}

jlongArray ids(JNIEnv* env, jclass, jlong context) {
  return guarded(env, [&] {
    const auto found = whole<std::vector<int64_t>>([&](int64_t* into, size_t room, size_t* count, char* error) {
      return el_context_ids(context_of(context), into, room, count, error);
    });
    return java_numbers(env, found.data(), found.size());
  });
}

jobjectArray message(JNIEnv* env, jclass, jlong context, jint number) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    el_message found = {};
    check(el_context_message(context_of(context), count_of(number, "messages"), &found, error), error);
    return java_texts(env, {found.role, found.content});
  });
}

void seek(JNIEnv* env, jclass, jlong context, jint tokens) {
  guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    check(el_context_seek(context_of(context), count_of(tokens, "tokens"), error), error);
  });
}

void again(JNIEnv* env, jclass, jlong context) {
  guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    check(el_context_again(context_of(context), error), error);
  });
}

jlong fork(JNIEnv* env, jclass, jlong context) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    el_context* other = nullptr;
    check(el_context_fork(context_of(context), &other, error), error);
    return reinterpret_cast<jlong>(other);
  });
}

void save(JNIEnv* env, jclass, jlong context, jbyteArray path) {
  guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    check(el_context_save(context_of(context), text_of(env, path).c_str(), error), error);
  });
}

void load(JNIEnv* env, jclass, jlong context, jbyteArray path) {
  guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    check(el_context_load(context_of(context), text_of(env, path).c_str(), error), error);
  });
}

jlongArray stats(JNIEnv* env, jclass, jlong context) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    auto s = sized<el_context_stats>();
    check(el_context_stats_read(context_of(context), &s, error), error);
    std::vector<uint64_t> exits(s.depths);
    s.exits = exits.data();
    check(el_context_stats_read(context_of(context), &s, error), error);
    std::vector<int64_t> all = {int64_t(s.tokens), int64_t(s.cached), int64_t(s.kv_bytes), int64_t(s.shared_bytes),
        int64_t(s.generated), int64_t(s.drafts), int64_t(s.drafts_right)};
    all.insert(all.end(), exits.begin(), exits.end());
    return java_numbers(env, all.data(), all.size());
  });
}

}  // namespace

const std::vector<JNINativeMethod> CONTEXT_METHODS = {
    method("newContext", "(JJIIZII[B[B)J", new_context),
    method("freeContext", "(J)V", free_context),
    method("append", "(J[J)V", append),
    method("text", "(J[B)V", text),
    method("say", "(J[B[B)V", say),
    method("chat", "(J[[B)V", chat),
    method("answer", "(JIZ[[BDIDDJLedgeloop/Native$Sink;)[J", answer),
    method("stop", "(J)V", stop),
    method("length", "(J)[J", length),
    method("ids", "(J)[J", ids),
    method("message", "(JI)[[B", message),
    method("seek", "(JI)V", seek),
    method("again", "(J)V", again),
    method("fork", "(J)J", fork),
    method("save", "(J[B)V", save),
    method("load", "(J[B)V", load),
    method("stats", "(J)[J", stats),
};

}  // namespace edgeloop_jni
