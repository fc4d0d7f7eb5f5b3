"""Route attention against full attention of the same module, on 32 x 32 and 64 x 64 tokens."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.models import build_config, check_equal
from benchmarks.timing import Settings, ratio, spreads, time_rounds
from ldvc.model.decoder_ldvc import LDVCAttention, LDVCRouteAttention
from ldvc.model.regions_ldvc import merge_regions


TITLE = "route attention / full attention, 32 x 32 and 64 x 64 tokens"
GOALS = {"32": ("at most", 1.0), "64": ("at most", 1.0), "32_masked": ("at most", 1.0)}
SIDES, QUICK_SIDES = (32, 64), (4, 8)
TOLERANCE = 1e-5


def masked_attention(route: LDVCRouteAttention, tokens: torch.Tensor, side: int) -> torch.Tensor:
    """The same routes as a mask on full attention: the other way to compute what `LDVCRouteAttention` gathers."""
    routes = route(tokens, (side, side))[2]
    num_regions = routes.shape[1]
    is_routed = torch.zeros(1, num_regions, num_regions, dtype=torch.bool, device=tokens.device)
    is_routed.scatter_(2, routes, True)
    region = side // route.num_regions
    ids = torch.arange(num_regions, device=tokens.device).view(1, -1, 1, 1).expand(1, -1, region * region, 1)
    ids = merge_regions(ids, (side, side), (region, region)).flatten()  # region of each token
    mask = is_routed[:, ids][:, :, ids]
    projected = (route.q_proj(tokens), route.k_proj(tokens), route.v_proj(tokens))
    queries, keys, values = (x.unflatten(-1, (route.num_heads, -1)).transpose(1, 2) for x in projected)
    output = F.scaled_dot_product_attention(queries, keys, values, mask[:, None], scale=route.scaling)
    return route.out_proj(output.transpose(1, 2).flatten(2))


@torch.inference_mode()
def measure(settings: Settings) -> dict[str, Any]:
    """Time route, masked and full attention in turn; route and masked are the same function, so they must agree."""
    torch.manual_seed(0)
    config = build_config(settings)
    config._attn_implementation = "sdpa"
    route = LDVCRouteAttention(config).to(settings.device, settings.dtype).eval()
    full = LDVCAttention(config).to(settings.device, settings.dtype).eval()
    full.load_state_dict(route.state_dict())
    ratios, seconds, difference = {}, {}, 0.0
    for side in QUICK_SIDES if settings.quick else SIDES:
        tokens = F.normalize(torch.randn(1, side * side, config.projection_dim), dim=-1)
        tokens = tokens.to(settings.device, settings.dtype)
        jobs = {
            "route": lambda tokens=tokens, side=side: route(tokens, (side, side))[0],
            "masked": partial(masked_attention, route, tokens, side),
            "full": lambda tokens=tokens: full(tokens)[0],
        }
        difference = max(difference, check_equal("outputs", jobs["route"](), jobs["masked"](), TOLERANCE))
        times = time_rounds(jobs, settings)
        ratios[str(side)] = ratio(times, "route", "full")
        ratios[f"{side}_masked"] = ratio(times, "route", "masked")
        seconds[str(side)] = spreads(times)
    return {"ratios": ratios, "seconds": seconds, "largest_difference": difference}
