#include "app.h"

namespace edgeloop::context {

namespace section = text::file;

View<uint8_t> table_of(const Model& model, section::Tag tag) {
  const View<uint8_t> all = model.text();
  if (!all.count) return {};
  section::Header header;
  const auto wrong = [] { fail(EL_FORMAT, "the text section is damaged; export the model again"); };
  if (all.count < sizeof header) wrong();
  std::memcpy(&header, all.data, sizeof header);
  if (std::memcmp(header.magic, section::MAGIC, sizeof header.magic) || header.version != section::VERSION ||
      header.records > section::MAX_TABLES || sizeof header + header.records * sizeof(section::Record) > all.count)
    wrong();
  for (uint32_t i = 0; i < header.records; i++) {
    section::Record record;
    std::memcpy(&record, all.data + sizeof header + i * sizeof record, sizeof record);
    if (record.offset > all.count || record.bytes > all.count - record.offset) wrong();
    if (record.tag == tag) return {all.data + record.offset, size_t(record.bytes)};
  }
  return {};
}

void About::read(View<uint8_t> bytes, uint32_t last) {
  if (!bytes.count) return;
  Record record(bytes, "what the model is");
  name = record.text(), identity = record.text(), edgeloop = record.text();
  for (const std::string* text : {&name, &identity, &edgeloop})
    if (text->find('\0') != std::string::npos || text->size() > 256) record.wrong();
  ends.resize(record.number(1024));
  for (int64_t& end : ends) end = record.number(last);
  record.finish();
}

App::App(const el_model& model) {
  const Model& file = *model.model;
  read(table_of(file, section::ABOUT), file.header().vocab_size - 1);
  const View<uint8_t> bytes = table_of(file, section::EXITS);
  exits = bytes.count ? std::make_unique<Exits>(model, Record(bytes, "exit rules")) : std::make_unique<Exits>(model);
  for (const Calibrated& rule : exits->calibrated) rules.push_back(rule.name.c_str());
  if (const View<uint8_t> found = table_of(file, section::TURNS); found.count) turns = std::make_unique<Turns>(Record(found, "turns"));
}

}  // namespace edgeloop::context
