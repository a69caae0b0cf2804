/** f32 or f64 elements from the tensor's first one on; arithmetic is in f64 and rounds when stored. */
export type Reals = Float32Array<ArrayBufferLike> | Float64Array<ArrayBufferLike>;
export type Ints = Int32Array<ArrayBufferLike>;
export type Halves = Uint16Array<ArrayBufferLike>;
