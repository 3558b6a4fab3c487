// How fast it is: the time of prompts and of each token, memory and start-up, as one line of JSON or for people.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "run.h"

#ifndef EDGELOOP_VERSION
#define EDGELOOP_VERSION ""
#endif

namespace edgeloop::run {

namespace {

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

std::string list(const std::vector<double>& values) {
  std::string found;
  for (const double x : values) {
    char text[32];
    std::snprintf(text, sizeof text, "%s%.4f", found.empty() ? "" : ",", x);
    found += text;
  }
  return "[" + found + "]";
}

int note(void* user, const el_piece* piece) {
  static_cast<std::vector<double>*>(user)->push_back(milliseconds(piece->nanoseconds));
  return 0;
}

}  // namespace

void bench(const Host& host, const Settings& settings) {
  const uint64_t wanted = uint64_t(settings.prompt_tokens) + settings.tokens;
  if (wanted > host.info.context_length)
    throw Problem{1, std::to_string(wanted) + " tokens of prompt and answer, and the model's context has " +
                         std::to_string(host.info.context_length) + "; give a smaller -p or -n"};
  char error[EL_ERROR_SIZE] = "";
  std::vector<int64_t> ids(settings.prompt_tokens);
  for (size_t i = 0; i < ids.size(); i++) ids[i] = int64_t((i * 7919 + 17) % host.info.vocab_size);
  const std::unique_ptr<el_context, decltype(&el_context_free)> context(host.context(settings), el_context_free);
  std::vector<double> prompts, firsts, means;
  std::string tokens;
  for (uint32_t run = 0; run <= settings.runs; run++) {  // the first one warms up
    check(el_context_seek(context.get(), 0, error), error);
    check(el_context_append(context.get(), ids.data(), ids.size(), error), error);
    std::vector<double> each;
    el_answer_options options = {};
    options.struct_bytes = sizeof options;
    options.max_tokens = settings.tokens;
    options.flags = EL_ANSWER_ENDLESS;
    options.sampling = &settings.sampling;
    el_answer told = {};
    told.struct_bytes = sizeof told;
    check(el_context_answer(context.get(), &options, note, &each, &told, error), error);
    if (!run) continue;
    prompts.push_back(milliseconds(told.prompt_nanoseconds));
    firsts.push_back(each.front());
    each.erase(each.begin());  // it came with the prompt
    double sum = 0;
    for (const double ms : each) sum += ms;
    means.push_back(each.empty() ? 0 : sum / double(each.size()));
    tokens += (tokens.empty() ? "" : ",") + list(each);
  }
  el_context_stats stats = {};
  stats.struct_bytes = sizeof stats;
  check(el_context_stats_read(context.get(), &stats, error), error);
  const uint64_t peak = peak_bytes();
  if (settings.json) {
    std::printf("{\"version\":\"%s\",\"kernels\":\"%s\",\"threads\":%u,\"open_ms\":%.3f,\"prompt_tokens\":%u,\"tokens\":%u,"
                "\"prompt_ms\":%s,\"first_ms\":%s,\"token_ms\":[%s],\"peak_bytes\":%llu,\"kv_bytes\":%llu,\"file_bytes\":%llu,"
                "\"processor\":%s}\n",
        EDGELOOP_VERSION, host.info.kernels, host.info.threads, host.open_ms, settings.prompt_tokens, settings.tokens,
        list(prompts).c_str(), list(firsts).c_str(), tokens.c_str(), (unsigned long long)peak, (unsigned long long)stats.kv_bytes,
        (unsigned long long)host.info.file_bytes, quoted(processor()).c_str());
    return;
  }
  const double prompt = median(prompts), token = median(means);
  std::printf("prompt         %.1f ms for %u tokens, %.0f tokens/s\n", prompt, settings.prompt_tokens,
      prompt > 0 ? settings.prompt_tokens * 1e3 / prompt : 0);
  std::printf("a token        %.3f ms, %.0f tokens/s\n", token, token > 0 ? 1e3 / token : 0);
  std::printf("open           %.1f ms\n", host.open_ms);
  std::printf("peak memory    %.1f MB, K and V %.2f MB\n", double(peak) / 1e6, double(stats.kv_bytes) / 1e6);
  std::printf("kernels        %s, %u threads at most\n", host.info.kernels, host.info.threads);
}

}  // namespace edgeloop::run
