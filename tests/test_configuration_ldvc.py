"""LDVCConfig: the interface's table, round trips, and a message for every impossible value."""

import dataclasses
import json
import re

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from ldvc.model.configuration_ldvc import AUTO_MAP, CHOICES, LDVCConfig


# The interface's table.
DEFAULTS = {
    "projection_dim": 512,
    "num_vision_prompts": 10,
    "vision_prompt_depth": None,
    "num_text_prompts": 4,
    "text_prompt_depth": None,
    "text_prompt_init": "handcrafted",
    "prompt_template": "a photo of a {}",
    "text_adapter": "relation",
    "decoder_query": "image",
    "num_decoder_layers": 2,
    "decoder_attention_heads": 8,
    "decoder_intermediate_size": 2048,
    "decoder_dropout": 0.1,
    "decoder_attention": "route",
    "num_regions": 8,
    "route_top_k": 16,
    "window_size": 16,
    "focal_weight": 100.0,
    "dice_weight": 1.0,
    "focal_alpha": 0.25,
    "focal_gamma": 2.0,
    "unlabeled_pixels": "negative",
    "semantic_loss_ignore_index": 255,
    "seen_classes": None,
    "seen_score_offset": 0.0,
}

# (fields, what the message must hold: field, value, remedy)
IMPOSSIBLE = [
    *(({field: "wrong"}, (field, "wrong", choices[-1])) for field, choices in CHOICES.items()),
    ({"patch_feature_settings": {"residul": 1.0}}, ("residul", "did you mean `residual`?")),
    ({"patch_feature_settings": {"residual": "much"}}, ("residual", "much", "a number of 0 or more")),
    ({"patch_feature_settings": {"gaussian_std": 2.0}}, ("gaussian_std", "no effect", "affinity='kk+gaussian'")),
    ({"patch_features": "gem", "patch_feature_settings": {"num_blocks": 13}}, ("num_blocks", "13", "12")),
    ({"num_decoder_layers": 0}, ("num_decoder_layers", "0", "at least 1")),
    ({"num_regions": 0}, ("num_regions", "0", "at least 1")),
    ({"route_top_k": 0}, ("route_top_k", "0", "at least 1")),
    ({"window_size": -1}, ("window_size", "-1", "at least 1")),
    ({"decoder_attention_heads": 0}, ("decoder_attention_heads", "0", "at least 1")),
    ({"decoder_intermediate_size": 0}, ("decoder_intermediate_size", "0", "at least 1")),
    ({"projection_dim": 0}, ("projection_dim", "0", "at least 1")),
    ({"num_vision_prompts": -1}, ("num_vision_prompts", "-1", "0 or more")),
    ({"num_text_prompts": -2}, ("num_text_prompts", "-2", "0 or more")),
    ({"focal_weight": -1.0}, ("focal_weight", "-1.0", "0 or more")),
    ({"dice_weight": float("nan")}, ("dice_weight", "nan", "0 or more")),
    ({"focal_gamma": -2.0}, ("focal_gamma", "-2.0", "0 or more")),
    ({"decoder_dropout": 1.0}, ("decoder_dropout", "1.0", "not including, 1")),
    ({"vision_prompt_dropout": -0.1}, ("vision_prompt_dropout", "-0.1", "from 0")),
    ({"focal_alpha": 1.5}, ("focal_alpha", "1.5", "from 0")),
    ({"seen_score_offset": 2.0}, ("seen_score_offset", "2.0", "from 0")),
    ({"seen_score_offset": float("nan")}, ("seen_score_offset", "nan", "from 0")),
    ({"decoder_attention_heads": 7}, ("decoder_attention_heads", "7", "512", "divisor")),
    ({"num_regions": 2}, ("route_top_k", "16", "num_regions", "2", "at most")),
    ({"vision_prompt_depth": 13}, ("vision_prompt_depth", "13", "1 to 12")),
    ({"text_prompt_depth": 0}, ("text_prompt_depth", "0", "1 to 12")),
    ({"num_text_prompts": 75}, ("num_text_prompts", "75", "77", "fewer")),
    ({"prompt_token_ids": [9, 1, 2]}, ("num_text_prompts", "4", "num_text_prompts=2")),
    ({"prompt_template": "a photo"}, ("prompt_template", "a photo", "exactly one {}")),
    ({"prompt_template": "{} and {}"}, ("prompt_template", "{} and {}", "exactly one {}")),
    ({"prompt_class_ids": [0, 1], "class_token_ids": [[1]]}, ("prompt_class_ids", "2", "1", "set_vocabulary")),
    ({"class_token_ids": [[1], [2]], "id2label": {0: "a", 1: "b", 2: "c"}}, ("id2label", "3", "2", "set_vocabulary")),
    ({"class_token_ids": [[1], [2]], "id2label": {1: "a", 2: "b"}}, ("id2label", "ids from 1", "from 0")),
    ({"class_token_ids": [[1]], "prompt_class_ids": [0]}, ("id2label", "1 classes", "set_vocabulary")),
    ({"class_token_ids": [[1]], "id2label": {0: "a"}, "other_label": "x"}, ("1 classes", "2 names", "set_vocabulary")),
    (
        {"class_token_ids": [[1]], "id2label": {0: "a", 1: "b"}, "other_label": "x"},
        ("other_label", "'x'", "'b'", "set_vocabulary"),
    ),
    ({"seen_classes": ["cat", "cat"]}, ("seen_classes", "cat", "once")),
]
WRONG_TYPES = [
    {"num_vision_prompts": "4"},
    {"num_regions": 2.5},
    {"decoder_attention": None},
    {"prompt_template": 3},
    {"seen_classes": "cat"},
    {"seen_classes": [1]},
    {"class_token_ids": [1, 2]},
    {"semantic_loss_ignore_index": "255"},
    {"focal_weight": "100"},
    {"baked_vocabulary": "yes"},
]


@pytest.mark.parametrize(("field", "default"), DEFAULTS.items())
def test_the_defaults_are_those_of_the_interface(field, default):
    assert getattr(LDVCConfig(), field) == default


def test_the_default_towers_are_those_of_vit_b16():
    config = LDVCConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size) == (768, 12, 16, 224)
    assert (text.hidden_size, text.num_hidden_layers, text.max_position_embeddings) == (512, 12, 77)


@pytest.mark.parametrize(("fields", "mentions"), IMPOSSIBLE, ids=[str(fields) for fields, _ in IMPOSSIBLE])
def test_an_impossible_value_raises_and_the_message_names_field_value_and_remedy(fields, mentions):
    with pytest.raises(StrictDataclassError) as error:
        LDVCConfig(**fields)
    for mention in mentions:
        assert mention in str(error.value)


@pytest.mark.parametrize("fields", WRONG_TYPES, ids=str)
def test_a_wrong_type_raises_and_the_message_names_the_field(fields):
    with pytest.raises(StrictDataclassError, match=next(iter(fields))):
        LDVCConfig(**fields)


def test_a_wrong_type_raises_on_assignment_too():
    config = LDVCConfig()
    with pytest.raises(StrictDataclassError, match="num_regions"):
        config.num_regions = "8"


def test_an_impossible_value_that_was_assigned_is_found_on_saving(tmp_path):
    config = LDVCConfig()
    config.route_top_k = 65
    with pytest.raises(StrictDataclassError, match="route_top_k"):
        config.save_pretrained(tmp_path)


def test_json_round_trip_keeps_every_field(tmp_path):
    config = LDVCConfig(
        text_config={"hidden_size": 64, "num_attention_heads": 2},
        vision_config={"hidden_size": 96, "num_attention_heads": 3, "patch_size": 8},
        vision_prompt_depth=3,
        patch_features="resclip",
        patch_feature_settings={"residual": 1.0, "middle_blocks": [6, 7]},
        text_adapter="linear",
        logit_scale="cosine",
        logit_bias_init=-4.0,
        seen_classes=["cat"],
        seen_score_offset=0.1,
        class_token_ids=[[1, 2], [1, 3, 2]],
        id2label={0: "cat", 1: "sofa"},
    )
    config.save_pretrained(tmp_path)
    loaded = LDVCConfig.from_pretrained(tmp_path)
    for field in dataclasses.fields(LDVCConfig):
        if field.name in ("text_config", "vision_config"):
            assert getattr(loaded, field.name).to_dict() == getattr(config, field.name).to_dict()
        elif field.name not in ("transformers_version", "_name_or_path"):
            assert getattr(loaded, field.name) == getattr(config, field.name), field.name
    assert loaded.to_json_string() == config.to_json_string()


def test_auto_config_gives_ldvc_config_for_the_folder_and_for_the_model_type(tmp_path):
    LDVCConfig(num_vision_prompts=7).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, LDVCConfig)
    assert loaded.num_vision_prompts == 7
    assert isinstance(AutoConfig.for_model("ldvc"), LDVCConfig)


def test_the_saved_file_says_where_the_code_of_every_auto_class_is(tmp_path):
    LDVCConfig().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {
        "AutoConfig",
        "AutoModel",
        "AutoModelForSemanticSegmentation",
        "AutoProcessor",
        "AutoImageProcessor",
    } <= set(AUTO_MAP)


def test_every_field_is_documented():
    documented = set()
    arguments = LDVCConfig.__doc__.split("Args:")[1].split("Raises:")[0]
    for line in arguments.splitlines():
        if match := re.match(r"    (\w+(?:, \w+)*)(?: \(|:)", line.removeprefix("    ")):
            documented.update(match.group(1).split(", "))
    own = set(LDVCConfig.__annotations__) - {"model_type", "sub_configs_defaults"}
    assert own - documented == set()
    assert {name for name in documented if hasattr(LDVCConfig(), name)} == documented


def test_names_alone_give_both_directions():
    config = LDVCConfig(id2label={0: "cat", 1: "sofa", 2: "grass"})
    assert config.label2id == {"cat": 0, "sofa": 1, "grass": 2}
    assert config.num_labels == 3


def test_names_read_from_json_have_integer_ids(tmp_path):
    LDVCConfig(id2label={0: "cat", 1: "sofa"}).save_pretrained(tmp_path)
    loaded = LDVCConfig.from_pretrained(tmp_path)
    assert loaded.id2label == {0: "cat", 1: "sofa"}
    assert loaded.label2id == {"cat": 0, "sofa": 1}
