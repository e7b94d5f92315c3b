"""The written folder against sentencepiece itself, and its chat template against Mistral's own library."""

import json
import random
import re
from pathlib import Path

import pytest
import sentencepiece
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from aurora.core.errors import ModelError
from aurora.prompt.tokenizer import check_model, check_template, sentencepiece_processor
from aurora.small_base.tokenizer_folder import merges, write_tokenizer

MODEL_FILE = MistralTokenizer._data_path() / "tokenizer.model.v1"
FRAGMENTS = [
    *" \n\t▁aé，。好𠮷🙂\x00\x7f\xa0\u3000\u200b\u0301",
    *("  ", "   ", " " * 17, "aaaa", "=" * 9, "[INST]", "[/INST]", "<0x0A>", "你好", "def ", "0123", "\r\n", "👩‍👩‍👧"),
]


@pytest.fixture(scope="module")
def processor():
    return sentencepiece_processor(MODEL_FILE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(MODEL_FILE, path)
    (path / "config.json").write_text('{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}')
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def random_texts(count: int) -> list[str]:
    source = random.Random(5)
    texts = ["".join(source.choices(FRAGMENTS, k=source.randrange(24))) for _ in range(count)]
    texts += [" " * source.randrange(90) + "x" * source.randrange(3) + " " * source.randrange(90) for _ in range(count)]
    scalars = [*range(0xD800), *range(0xE000, 0x110000)]
    texts += ["".join(map(chr, source.choices(scalars, k=source.randrange(20)))) for _ in range(count)]
    return texts


def real_texts(value: object) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in real_texts(item)]
    return [value] if isinstance(value, str) else []


def test_random_texts_get_the_ids_of_sentencepiece(processor, tokenizer):
    texts = random_texts(2000)
    assert tokenizer(texts).input_ids == [[1, *ids] for ids in processor.encode(texts)]


def test_real_texts_get_the_ids_of_sentencepiece(processor, tokenizer, real_data):
    texts = []
    for path in sorted((real_data / "instructions").rglob("*.json*")):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        texts += [text for line in lines for text in real_texts(json.loads(line))]
    assert len(texts) > 10_000
    assert tokenizer(texts).input_ids == [[1, *ids] for ids in processor.encode(texts)]


def test_a_saved_copy_stays_exact(processor, tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    copy = AutoTokenizer.from_pretrained(tmp_path)
    texts = random_texts(200)
    assert copy(texts).input_ids == [[1, *ids] for ids in processor.encode(texts)]
    assert copy.chat_template == tokenizer.chat_template


def test_names_of_special_tokens_are_text_when_asked_for(processor, tokenizer):
    texts = ["</s>", "a</s>b", "<s> </s>  <unk>", "x <s>"]
    ids = tokenizer(texts, split_special_tokens=True, add_special_tokens=False).input_ids
    assert ids == processor.encode(texts)
    assert tokenizer("a</s>").input_ids[-1] == 2  # without asking, as in every Hugging Face tokeniser


def test_decoding_gives_the_text_back(tokenizer):
    for text in ("你好，𠮷🙂  two\n\nspaces ", " leading", "\ttab"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_same_bytes_every_time(folder, tmp_path):
    write_tokenizer(MODEL_FILE, tmp_path)
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert (folder / "tokenizer.model").read_bytes() == MODEL_FILE.read_bytes()


def test_no_merge_makes_a_control_token():
    scores = {"<": -1.0, "s": -2.0, ">": -3.0, "<s": -4.0, "s>": -5.0}
    assert set(merges(scores)) == {("<", "s"), ("s", ">")}


def test_chat_template_gives_the_ids_of_mistral(tokenizer):
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import InstructRequest

    reference = MistralTokenizer.v1().instruct_tokenizer
    source = random.Random(6)
    for _ in range(300):
        turns = ["".join(source.choices(FRAGMENTS, k=source.randrange(1, 12))) for _ in range(source.randrange(1, 7))]
        roles = [("user", UserMessage), ("assistant", AssistantMessage)]
        messages = [{"role": roles[i % 2][0], "content": turn} for i, turn in enumerate(turns)]
        request = InstructRequest(messages=[roles[i % 2][1](content=turn) for i, turn in enumerate(turns)])
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        assert ids == reference.encode_instruct(request).tokens, turns


def test_chat_template_refuses_two_turns_of_one_role(tokenizer):
    with pytest.raises(Exception, match="roles must alternate, user first; turn 1 is user"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


def changed_model(path: Path, change) -> Path:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(MODEL_FILE.read_bytes())
    change(proto)
    path.write_bytes(proto.SerializeToString())
    sentencepiece.SentencePieceProcessor(model_file=str(path))  # a model, though another
    return path


def test_another_vocabulary_is_refused(tmp_path):
    def swap(proto):
        first, second = proto.pieces[5000], proto.pieces[5001]
        first.piece, second.piece = second.piece, first.piece

    with pytest.raises(ModelError, match=r"32,000 pieces .* are not Mixtral's 32,000"):
        sentencepiece_processor(changed_model(tmp_path / "swapped.model", swap))
    with pytest.raises(ModelError, match=r"31,999 pieces .* are not Mixtral's 32,000"):
        sentencepiece_processor(changed_model(tmp_path / "short.model", lambda proto: proto.pieces.pop()))


def test_other_settings_are_refused(tmp_path):
    def no_prefix(proto):
        proto.normalizer_spec.add_dummy_prefix = False

    with pytest.raises(ModelError, match="encodes 'a  b' as"):
        sentencepiece_processor(changed_model(tmp_path / "bare.model", no_prefix))


def test_other_special_tokens_are_refused(tmp_path):
    def rename(proto):
        proto.pieces[2].piece = "<|im_end|>"
        proto.trainer_spec.eos_piece = "<|im_end|>"

    with pytest.raises(ModelError, match=r"ids 0, 1, 2 are <unk> <s> <\|im_end\|>, but Mixtral's are <unk> <s> </s>"):
        sentencepiece_processor(changed_model(tmp_path / "chatml.model", rename))


def test_missing_and_broken_models_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"none.model: no tokeniser there; .* dvc repro --glob 'fetch\*@base'"):
        sentencepiece_processor(tmp_path / "none.model")
    (tmp_path / "text.model").write_text("<html>not found</html>")
    with pytest.raises(ModelError, match=r"text.model: not a sentencepiece model"):
        sentencepiece_processor(tmp_path / "text.model")


def test_template_of_another_family_is_refused(folder, tmp_path):
    check_template(folder / "tokenizer_config.json")
    check_template(tmp_path / "tokenizer_config.json")  # none: nothing to refuse
    config = tmp_path / "chatml.json"
    config.write_text(json.dumps({"chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}"}))
    with pytest.raises(ModelError, match=r"chatml.json: chat_template has no \[INST\] .* another model family"):
        check_template(config)


def test_a_base_with_other_special_tokens_or_more_of_them_is_refused(folder, tmp_path):
    check_model(folder)
    check_model(tmp_path)  # no files: nothing to refuse
    wrong = {
        "config.json": {"vocab_size": 32002, "bos_token_id": 0, "eos_token_id": 32000},
        "tokenizer_config.json": {"bos_token": "<bos>", "eos_token": {"content": "<|im_end|>"}},
    }
    for name, entries in wrong.items():
        for entry, value in entries.items():
            (tmp_path / name).write_text(json.dumps({entry: value}))
            given = value["content"] if isinstance(value, dict) else value
            with pytest.raises(
                ModelError, match=f"{name}: {entry} is {re.escape(repr(given))}, but that of the tokeniser is"
            ):
                check_model(tmp_path)
        (tmp_path / name).unlink()
