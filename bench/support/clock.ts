/**
 * Milliseconds on a clock that all processes of this machine share and that nobody sets, unlike the one behind
 * `performance.timeOrigin`: each process has read that when it began.
 */
export const machineMs = (): number => Number(process.hrtime.bigint()) / 1e6;
