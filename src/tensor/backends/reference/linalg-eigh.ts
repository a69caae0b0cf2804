type Doubles = Float64Array;

/** One reflector after the other, each applied to the whole matrix. */
export function tridiagonal_panel(a: Doubles, vw: Doubles, d: Doubles, e: Doubles, tau: Doubles, n: number, from: number, width: number): void {
  const now = a.slice(0, n * n);
  for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) now[i * n + j] = now[j * n + i]!;
  vw.fill(0, 0, 3 * width * n);
  for (let k = 0; k < width; k++) {
    const j = from + k;
    const x = now.subarray(j * n, (j + 1) * n);
    d[j] = x[j]!;
    tau[j] = 0;
    a.fill(0, j * n, (j + 1) * n);
    if (j + 1 === n) continue;
    let rest = 0;
    for (let i = j + 2; i < n; i++) rest += x[i]! ** 2;
    const [v, w] = [new Float64Array(n), new Float64Array(n)];
    v[j + 1] = 1;
    if (rest < 1e-280) e[j] = x[j + 1]!;
    else {
      e[j] = -Math.sqrt(x[j + 1]! ** 2 + rest) * (x[j + 1]! < 0 || Object.is(x[j + 1], -0) ? -1 : 1);
      tau[j] = (e[j]! - x[j + 1]!) / e[j]!;
      for (let i = j + 2; i < n; i++) v[i] = x[i]! / (x[j + 1]! - e[j]!);
    }
    a.set(v, j * n);
    for (let i = j + 1; i < n; i++) for (let c = j + 1; c < n; c++) w[i]! += tau[j]! * now[i * n + c]! * v[c]!;
    const half = (-tau[j]! / 2) * w.reduce((sum, value, i) => sum + value * v[i]!, 0);
    for (let i = j + 1; i < n; i++) w[i]! += half * v[i]!;
    for (let i = j + 1; i < n; i++) for (let c = j + 1; c < n; c++) now[i * n + c]! -= v[i]! * w[c]! + w[i]! * v[c]!;
    for (const [part, values] of [v, w, v].entries()) vw.set(values, (part * width + k) * n);
  }
}

export function tridiagonal_ql(d: Doubles, e: Doubles, q: Doubles | null, n: number, block: number, qRow: number): void {
  for (let at = 0; at < n; at += block) {
    const size = Math.min(block, n - at);
    if (q) for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) q[(at + i) * qRow + at + j] = i === j ? 1 : 0;
    if (!implicitQl(d.subarray(at, at + size), e.subarray(at), q && q.subarray(at * qRow + at), size, qRow)) d[at] = NaN;
  }
}

function implicitQl(d: Doubles, e: Doubles, q: Doubles | null, n: number, qRow: number): boolean {
  const norm = d.reduce((largest, value, i) => Math.max(largest, Math.abs(value), i + 1 < n ? Math.abs(e[i]!) : 0), 1e-124);
  const small = (m: number): boolean => Math.abs(e[m]!) <= Math.max(2 ** -52 * (Math.abs(d[m]!) + Math.abs(d[m + 1]!)), 2 ** -54 * norm);
  for (let l = 0; l < n; l++)
    for (let turn = 0; ; turn++) {
      let m = l;
      while (m < n - 1 && !small(m)) m++;
      if (m === l) break;
      if (turn === 60) return false;
      const shift = (d[l + 1]! - d[l]!) / (2 * e[l]!);
      let g = d[m]! - d[l]! + e[l]! / (shift + (shift < 0 ? -1 : 1) * Math.hypot(shift, 1));
      let [s, c, p] = [1, 1, 0];
      let i = m - 1;
      for (; i >= l; i--) {
        const [f, b] = [s * e[i]!, c * e[i]!];
        const r = Math.hypot(f, g);
        if (i + 1 < m) e[i + 1] = r;
        if (r === 0) {
          d[i + 1]! -= p;
          break;
        }
        [s, c] = [f / r, g / r];
        g = d[i + 1]! - p;
        const t = (d[i]! - g) * s + 2 * c * b;
        p = s * t;
        d[i + 1] = g + p;
        g = c * t - b;
        if (q)
          for (let at = 0; at < n; at++) {
            const [x, y] = [q[i * qRow + at]!, q[(i + 1) * qRow + at]!];
            q[(i + 1) * qRow + at] = s * x + c * y;
            q[i * qRow + at] = c * x - s * y;
          }
      }
      if (m < n - 1) e[m] = 0;
      if (i >= l) continue;
      d[l]! -= p;
      e[l] = g;
    }
  return true;
}

/** Every root by bisection, as the distance from the pole it is nearest to; then Löwner's formula. */
export function secular(values: Doubles, q: Doubles, d: Doubles, z: Doubles, place: Int32Array, k: number, qRow: number): void {
  const delta = Array.from({ length: k }, (_, j) => {
    const at = (origin: number, mu: number): number => {
      let f = 1;
      for (let i = 0; i < k; i++) f += z[i]! ** 2 / (d[i]! - origin - mu);
      return f;
    };
    const reach = j + 1 < k ? (d[j + 1]! - d[j]!) / 2 : z.slice(0, k).reduce((sum, x) => sum + x * x, 0);
    const right = j + 1 < k && at(d[j]!, reach) < 0;
    const origin = d[right ? j + 1 : j]!;
    const sign = right ? -1 : 1;
    // |μ| between 0 and reach; the middle in powers of two while the ends are far apart
    let [near, far] = [0, reach];
    for (;;) {
      const middle = far > 4 * near ? Math.max(Math.sqrt(near * far), far * 1e-4) : (near + far) / 2;
      if (middle <= near || middle >= far || far < 1e-300) break;
      if (at(origin, sign * middle) * sign < 0) near = middle;
      else far = middle;
    }
    values[j] = origin + sign * far;
    return Array.from({ length: k }, (__, i) => d[i]! - origin - sign * far);
  });
  const weights = Array.from({ length: k }, (_, i) => {
    let w = delta[i]![i]!;
    for (let j = 0; j < k; j++) if (j !== i) w *= delta[j]![i]! / (d[i]! - d[j]!);
    return Math.sqrt(Math.abs(w)) * Math.sign(z[i]!);
  });
  for (let j = 0; j < k; j++) {
    const row = delta[j]!.map((value, i) => weights[i]! / value);
    const norm = Math.hypot(...row);
    row.forEach((value, i) => (q[j * qRow + place[i]!] = value / norm));
  }
}

export function jacobi_sweep(g: Doubles, v: Doubles, off: Doubles, n: number, m: number, tolerance: number): void {
  const players = n + (n % 2);
  const ring = players - 1;
  off.fill(0, 0, players / 2);
  for (let round = 0; round < ring; round++)
    for (let task = 0; task < players / 2; task++) {
      const i = (round + task) % ring;
      const j = task === 0 ? ring : (round + ring - task) % ring;
      if (i >= n || j >= n) continue;
      const [x, y] = [g.subarray(i * m, (i + 1) * m), g.subarray(j * m, (j + 1) * m)];
      const dot = (p: Doubles, q: Doubles): number => p.reduce((sum, value, at) => sum + value * q[at]!, 0);
      const [a, b, c] = [dot(x, x), dot(y, y), dot(x, y)];
      if (a < 1e-280 || b < 1e-280) continue;
      const cosine = Math.abs(c) / Math.sqrt(a) / Math.sqrt(b);
      off[task] = Math.max(off[task]!, cosine);
      if (cosine <= tolerance) continue;
      const zeta = (b - a) / (2 * c);
      const t = (zeta < 0 || Object.is(zeta, -0) ? -1 : 1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
      const cs = 1 / Math.sqrt(1 + t * t);
      for (const [p, q] of [
        [x, y],
        [v.subarray(i * n, (i + 1) * n), v.subarray(j * n, (j + 1) * n)],
      ] as const)
        p.forEach((value, at) => {
          const other = q[at]!;
          p[at] = cs * (value - t * other);
          q[at] = cs * (t * value + other);
        });
    }
}
