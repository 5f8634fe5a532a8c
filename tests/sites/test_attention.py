"""Statistics computed from queries and keys equal those read off the full attention matrix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import Prompt, make_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

import illava_lab as il
from illava_lab.method.tokens import STATISTICS
from illava_lab.sites import scores
from illava_lab.sites.attention import CLS_STATISTICS, AttentionSite


@st.composite
def sites(draw):
    """A site as the LLM has it (grouped keys, causal, left padding, visual span), and its full attention matrix."""
    batch, groups, per_group, width = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3)), 4
    length = draw(st.integers(6, 20))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    query = torch.randn(batch, groups * per_group, length, width, generator=random)
    key = torch.randn(batch, groups, length, width, generator=random)
    padding = torch.randint(0, 3, (batch,), generator=random)
    valid = torch.arange(length) >= padding[:, None]
    visible = valid[:, None, None, :] & torch.ones(length, length).tril().bool()
    logits = query @ key.repeat_interleave(per_group, 1).transpose(2, 3) * 0.5
    logits = logits.masked_fill(~visible, -torch.inf)
    added = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    kind, mask = draw(st.sampled_from([("boolean", visible), ("additive", added), ("2d", valid), ("none", None)]))
    visual = torch.arange(3, length - 2).expand(batch, -1)
    site = AttentionSite(
        query, key, 0.5, mask, valid, causal=kind in ("2d", "none"), visual=visual, hidden=query.transpose(1, 2).flatten(2),
        last=torch.full((batch,), length - 1), text=torch.arange(length - 2, length).expand(batch, -1),
    )  # fmt: skip
    return site, logits, valid


@given(sites())
@settings(max_examples=100, deadline=None)
def test_statistics_equal_the_full_matrix(case):
    site, logits, valid = case
    length = logits.shape[-1]
    weights = logits.softmax(-1).nan_to_num()  # rows of padding see nothing
    visual = slice(3, length - 2)
    rows = weights.mean(1)
    received = torch.stack([row[ok].mean(0) for row, ok in zip(rows, valid, strict=True)])
    torch.testing.assert_close(site.statistic("attention_received"), received[:, visual])
    torch.testing.assert_close(site.statistic("text_attention"), rows[:, -1, visual])
    torch.testing.assert_close(replace(site, last=length - 1).statistic("text_attention"), rows[:, -1, visual])
    torch.testing.assert_close(replace(site, last=length - 2).statistic("text_attention"), rows[:, -2, visual])
    torch.testing.assert_close(site.statistic("text_rows"), rows[:, -2:, visual])
    torch.testing.assert_close(site.statistic("lse"), logits.logsumexp(-1).mean(1)[:, visual])
    torch.testing.assert_close(site.statistic("keys"), site.key.mean(1)[:, visual])
    assert torch.equal(site.statistic("wide_keys"), site.key.transpose(1, 2).flatten(2)[:, visual])
    assert torch.equal(site.statistic("text_hidden"), site.hidden[:, -2:])


@given(sites(), st.data())
@settings(max_examples=50, deadline=None)
def test_images_of_one_prompt_share_what_is_computed_of_it(case, data):
    """Any number of images in any prompts get what each would get from a copy of its prompt."""
    site, logits, _ = case
    prompts, length = len(logits), logits.shape[-1]
    rows = torch.tensor(data.draw(st.lists(st.integers(0, prompts - 1), min_size=1, max_size=5)))
    starts = torch.tensor(data.draw(st.lists(st.integers(0, length - 3), min_size=len(rows), max_size=len(rows))))
    visual = starts[:, None] + torch.arange(3)

    def next_layer(at=slice(None)):
        return lambda: (site.query[at].flip(2), site.key[at].flip(2))

    def entry(at=slice(None)):
        return lambda: (site.hidden[at].flip(1), visual.flip(1), site.text[at])

    site = replace(site, value=site.key.flip(2))
    shared = replace(site, visual=visual, prompt=rows, ahead=next_layer(), entry=entry(), norm=torch.nn.Tanh())
    given = ("query", "key", "value", "valid", "hidden", "last", "text", *(["mask"] if site.mask is not None else []))
    copies = replace(shared, prompt=None, ahead=next_layer(rows), entry=entry(rows),
                     **{name: getattr(site, name)[rows] for name in given})  # fmt: skip
    of_others = {*CLS_STATISTICS, "noted", "joint_hidden", "joint_text"}  # of the encoder, or of each image as it is
    for name in set(STATISTICS) - of_others:
        torch.testing.assert_close(shared.statistic(name), copies.statistic(name), equal_nan=True, msg=name)
    whole = []
    original = scores.products
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "products", lambda *given: whole.append(original(*given)) or whole[-1])
        for name in ("attention_received", "text_attention", "next_text_attention", "text_rows", "lse"):
            shared.statistic(name)
    assert len(whole) == 5
    assert {len(block) for block in whole} == {prompts}, "scores are those of prompts, not of images"


def test_cls_rows_and_what_a_site_lacks():
    def causal(batch, head, row, column):
        return row >= column

    query, key = torch.randn(1, 2, 9, 4), torch.randn(1, 2, 9, 4)
    encoder = AttentionSite(query, key, 0.5, has_cls=True)
    want = (query @ key.transpose(2, 3) * 0.5).softmax(-1)[:, :, 0].mean(1)
    torch.testing.assert_close(encoder.statistic("cls_attention"), want)
    wide_q, wide_k = query[:, :, 0].flatten(1), key.transpose(1, 2).flatten(2)
    want = (torch.einsum("bc,bnc->bn", wide_q, wide_k) / 8**0.5).softmax(-1)
    torch.testing.assert_close(encoder.statistic("wide_cls_attention"), want)
    value = torch.randn(1, 2, 9, 4)
    encoder = AttentionSite(query, key, 0.5, has_cls=True, value=value)
    want = (value[:, :, :1] @ value.mT).softmax(-1).mean(1)[:, 0]
    torch.testing.assert_close(encoder.statistic("cls_value_attention"), want)
    torch.testing.assert_close(encoder.statistic("values"), value.mean(1))
    with pytest.raises(il.LabError, match="nothing was noted here"):
        encoder.statistic("noted")
    with pytest.raises(il.LabError, match=r"text_attention needs the language model.*it has attention_received"):
        encoder.statistic("text_attention")
    with pytest.raises(il.LabError, match="needs a CLS token"):
        AttentionSite(query, key, 0.5).statistic("cls_attention")
    with pytest.raises(il.LabError, match="mask must be a tensor or None, not BlockMask"):
        AttentionSite(query, key, 0.5, create_block_mask(causal, 1, 1, 9, 9, device="cpu")).statistic("lse")
    with pytest.raises(il.LabError, match=r"mask must have 2 or 4 dimensions, not the shape \(1, 9, 9\)"):
        AttentionSite(query, key, 0.5, torch.ones(1, 9, 9)).statistic("lse")
    with pytest.raises(il.LabError, match="keys was not given"):
        il.Tokens("encoder", torch.randn(1, 3, 2)).keys


def test_what_entered_the_llm_and_its_last_norm_are_seen_at_every_layer(model):
    inputs, seen = make_inputs([Prompt(text_after=3, seed=1), Prompt(text_after=3, seed=2)]), []

    class Look(il.get_strategy("random")):
        name = "look"

        def map(self, tokens: il.Tokens, keep: int) -> il.TokenMap:
            if tokens.stage == "llm":
                seen.append((tokens.embeddings, tokens.text_embeddings, tokens.normed_hidden, tokens.hidden))
            return super().map(tokens, keep)

    schedule = il.Schedule(encoder={1: 20}, llm={1: 10, 3: 5})
    with il.attach(model, Look(), schedule), torch.no_grad():
        features = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        model(**inputs)
    entered = torch.stack([row[~row.isnan().any(-1)] for row in features])
    words = model.get_input_embeddings()(inputs["input_ids"][:, -4:])  # one after the image, three more
    for image, text, normed, hidden in seen:
        torch.testing.assert_close(image, entered)
        torch.testing.assert_close(text, words)
        torch.testing.assert_close(normed, model.model.language_model.norm(hidden))
    assert [row[3].shape[1] for row in seen] == [20, 10]
