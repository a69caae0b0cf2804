type Doubles = Float64Array;

/** One reflector after the other, each applied to all columns that follow. */
export function householder_panel(w: Doubles, v: Doubles, t: Doubles, length: number, width: number, wRow: number, vRow: number): void {
  t.fill(0, 0, width * width);
  for (let j = 0; j < width; j++) {
    const x = w.subarray(j * wRow, j * wRow + length);
    const own = v.subarray(j * vRow, j * vRow + length).fill(0);
    own[j] = 1;
    let rest = 0;
    for (let i = j + 1; i < length; i++) rest += x[i]! ** 2;
    let tau = 0;
    if (!(rest < 1e-280)) {
      const beta = Math.sqrt(x[j]! ** 2 + rest) * (x[j]! < 0 || Object.is(x[j], -0) ? 1 : -1);
      for (let i = j + 1; i < length; i++) own[i] = x[i]! / (x[j]! - beta);
      tau = (beta - x[j]!) / beta;
      x[j] = beta;
    }
    x.fill(0, j + 1);
    for (let c = j + 1; c < width; c++) {
      let dot = 0;
      for (let i = j; i < length; i++) dot += own[i]! * w[c * wRow + i]!;
      for (let i = j; i < length; i++) w[c * wRow + i]! -= tau * dot * own[i]!;
    }
    const dots = Array.from({ length: j }, (_, k) => own.reduce((sum, value, i) => sum + value * v[k * vRow + i]!, 0));
    for (let i = 0; i < j; i++) for (let k = i; k < j; k++) t[i * width + j]! -= tau * t[i * width + k]! * dots[k]!;
    t[j * width + j] = tau;
  }
}
