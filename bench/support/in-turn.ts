// Two sides of a comparison, measured one after the other.

export type Rate = () => Promise<number>;

/** Measures both, and which comes first alternates by the round: what the machine does meanwhile is not one side's. */
export async function inTurn(round: number, first: Rate, second: Rate): Promise<[number, number]> {
  if (round % 2 === 0) return [await first(), await second()];
  const known = await second();
  return [await first(), known];
}
