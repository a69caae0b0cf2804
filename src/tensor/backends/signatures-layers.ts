/** Convolution, pooling, recurrent cells and the losses of layers. */
export const layers = {} as const;
