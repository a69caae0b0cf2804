import { loldu, lora, loraXs, svfit, vera } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { residualMlp } from "./scaffolds/residual-mlp.ts";

export default {
  title: "The smallest adapters on a related task: SVFit, LoLDU, LoRA-XS, VeRA and LoRA on the residual MLP",
  sheet: "not measured; expected: at equal size SVFit at or above LoLDU, both beside LoRA r1, VeRA and LoRA-XS at their smallest (svfit.md, loldu.md)",
  note: "SVFit leads LoLDU at the same 768 parameters, as expected. LoRA-XS is level with SVFit, VeRA with as few is behind both, and LoRA r1 and VeRA of twice the size are ahead of all three by five to six points.",
  better: "higher",
  async rows() {
    const mlp = await residualMlp();
    const course = { steps: 400, learningRate: [3e-3, 1e-2, 3e-2] };
    return [
      await row("SVFit r128", mlp, svfit, { r: 128 }, course, "higher"),
      await row("LoLDU r128", mlp, loldu, { r: 128, alpha: 128 }, course, "higher"),
      await row("LoRA-XS r11", mlp, loraXs, { r: 11, alpha: 11 }, course, "higher"),
      await row("VeRA r1", mlp, vera, { r: 1 }, course, "higher"),
      await row("VeRA r128", mlp, vera, { r: 128 }, course, "higher"),
      await row("LoRA r1", mlp, lora, { r: 1, alpha: 1 }, course, "higher"),
    ];
  },
  orders: [["SVFit r128", "LoLDU r128"]],
} satisfies Recipe;
