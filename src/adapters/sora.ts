import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Params as AnyParams, Phase, Regime, Site, View } from "../nn/contracts.ts";
import { adam } from "../optimizers/adam.ts";
import { coredLowRank } from "../operators/index.ts";
import { abs, add, hostNumbers, Parameter, scale, sum, type Tensor } from "../tensor/index.ts";
import { adapter, addAt } from "./adapter.ts";
import { shrink } from "./gates.ts";
import { dropInput, initLora, loraOptions, loraTensors, type LoraParams } from "./lora.ts";
