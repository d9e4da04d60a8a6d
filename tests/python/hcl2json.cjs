// Prints HCL files as JSON: an array in the order of the arguments.
const fs = require("fs");
const { parse } = require(`${process.env.WFS_HCL2JSON}/@cdktn/hcl2json`);

Promise.all(process.argv.slice(2).map((file) => parse(file, fs.readFileSync(file, "utf8"))))
  .then((parsed) => {
    process.stdout.write(JSON.stringify(parsed), () => process.exit(0));
  })
  .catch((error) => {
    console.error(String(error));
    process.exit(1);
  });
